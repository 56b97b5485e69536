# ruff: noqa: E402
"""A checkpoint is data: whatever its JSON files name, nothing is imported, opened elsewhere or asked of the network."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
transformers = pytest.importorskip("transformers", reason="the engine needs transformers")

from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.integrations import hub_kernels

from benchmarks.engine.random_pair import PairShape, write_random_pair
from engine.checkpoints.generation_fields import read_generation_config
from engine.checkpoints.loader import read_shell
from engine.checkpoints.model_pair import load_draft
from engine.checkpoints.tokenizer_files import load_tokenizer
from engine.checkpoints.trusted_config import read_config
from engine.engine import Engine
from spmoe.errors import InputError
from tests.engine.tiny import FAMILIES, tiny_config
from tests.paths import ROOT

Pair = tuple[Path, Path]

CONFIG = (
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "transformers_weights",
    "_name_or_path",
    "name_or_path",
    "custom_generate",
    "tokenizer_class",
    "processor_class",
    "use_kernels",
    "kernel_config",
    "backbone",
    "backbone_kwargs",
    "timm_kwargs",
    "extra_files",
    "extra_config_files",
    "base_model_name_or_path",
    "base_model_tp_plan",
    "attribute_map",
    "sub_configs",
    "to_dict",
    "get_text_config",
    "__class__",
    "_commit_hash",
)
GENERATION = (
    "custom_generate",
    "cache_implementation",
    "cache_config",
    "compile_config",
    "watermarking_config",
    "assistant_early_exit",
    "assistant_model",
    "speculation_type",
    "constraints",
    "transformers_version",
    "validate",
    "__class__",
)
TOKENIZER = (
    "auto_map",
    "processor_class",
    "name_or_path",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
    "spm_file",
    "special_tokens_map_file",
    "gguf_file",
    "fast_tokenizer_files",
    "init_inputs",
    "tokenizer_object",
    "local_files_only",
    "trust_remote_code",
    "mecab_kwargs",
    "vocab",
    "merges",
    "subfolder",
    "cache_dir",
    "config",
)
VALUES: dict[str, Any] = {
    "repository": "evil/repo",
    "code": "evil--trap.Model",
    "module": "trap.Model",
    "path": "/proc/self/environ",
    "up": "../../trap.py",
    "address": "http://evil.example/trap",
    "number": 1.5,
    "list": ["evil/repo", "trap.Model"],
    "object": {"": "evil/repo", "AutoConfig": "trap.Config", "AutoTokenizer": ["trap.T", "trap.T"]},
    "flag": True,
    "null": None,
}


class Watch:
    """What was tried that should not be."""

    def __init__(self) -> None:
        self.tried: list[str] = []

    def refuse(self, *args: object, **_options: object) -> None:
        self.tried.append(repr(args))
        raise OSError("refused by the test")


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Watch]:
    """Sockets that do not open, kernels that do not load, modules that tell when they are imported."""
    found = Watch()
    for owner, name in (
        (socket.socket, "connect"),
        (socket, "create_connection"),
        (socket, "getaddrinfo"),
        (hub_kernels, "get_kernel"),
    ):
        monkeypatch.setattr(owner, name, found.refuse)
    # As if `kernels` were installed: then a repository's name is all that it takes to run code.
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda *_: True)
    traps = tmp_path / "traps"
    traps.mkdir()
    for name in ("kernels", "evil", "trap"):
        (traps / f"{name}.py").write_text("raise SystemExit('code of a checkpoint was run')")
    monkeypatch.syspath_prepend(traps)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    before = set(sys.modules)
    yield found
    assert found.tried == []
    installed = (ROOT, Path(sys.base_prefix), *(Path(each.__file__).parents[1] for each in (torch, transformers)))
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        assert file is None or any(Path(file).is_relative_to(each) for each in installed), name
    assert not {"kernels", "evil", "trap"} & set(sys.modules)
    assert not (tmp_path / "modules").exists()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_random_pair(tmp_path_factory.mktemp("pair"), PairShape(layers=2, hidden=32, experts=4))


@pytest.fixture(scope="module")
def honest(pair: Pair) -> tuple[int, ...]:
    return generate(pair)


def generate(folders: Pair) -> tuple[int, ...]:
    with Engine.from_pretrained(*folders, device="cpu", dtype="float32", cache=0.5) as engine:
        return engine.generate("def", 5).tokens


def edit(path: Path, **changed: Any) -> None:
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**known, **changed}), "utf-8")


def copy(pair: Pair, to: Path) -> Pair:
    target, draft = (Path(shutil.copytree(folder, to / folder.name)) for folder in pair)
    return target, draft


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("hostile", ["target", "draft"])
def test_fields_that_name_code_change_nothing(
    pair: Pair, honest: tuple[int, ...], tmp_path: Path, watch: Watch, hostile: str, value: str
) -> None:
    """All of them at once, in each file, in a target or a draft."""
    folders = copy(pair, tmp_path)
    folder = folders[hostile == "draft"]
    (folder / "trap.py").write_text("raise SystemExit('code of a checkpoint was run')")
    given = VALUES[value]
    # A class of that name is asked for, and an own tokenizer's name decides which one is meant.
    config = dict.fromkeys(set(CONFIG) - {"tokenizer_class"}, given)
    edit(folder / "config.json", **config)
    edit(folder / "generation_config.json", **dict.fromkeys(GENERATION, given))
    edit(folder / "tokenizer_config.json", **dict.fromkeys(TOKENIZER, given))
    assert generate(folders) == honest


@pytest.mark.parametrize("field", CONFIG)
def test_one_field_of_a_configuration(pair: Pair, tmp_path: Path, watch: Watch, field: str) -> None:
    for part in pair:
        expected = read_config(part).to_dict()
        for number, value in enumerate(VALUES.values()):
            folder = tmp_path / f"{part.name}-{number}"
            folder.mkdir()
            shutil.copy(part / "config.json", folder)
            edit(folder / "config.json", **{field: value})
            assert read_config(folder).to_dict() | {"_name_or_path": ""} == expected | {"_name_or_path": ""}


@pytest.mark.parametrize("field", CONFIG)
def test_one_field_of_a_part(tmp_path: Path, watch: Watch, field: str) -> None:
    """In the configurations of parts, of their layers, and of what no class declares."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    text = {"model_type": "gemma3_text", **sizes, "vocab_size": 64, "num_key_value_heads": 1, "head_dim": 8}
    vision = {"model_type": "siglip_vision_model", **sizes, "image_size": 8, "patch_size": 4}
    plain = {"model_type": "gemma3", "text_config": text, "vision_config": vision, "mm_tokens_per_image": 4}
    expected = None
    for number, value in enumerate([None, *VALUES.values()]):
        folder = tmp_path / str(number)
        folder.mkdir()
        given = {field: value} if number else {}
        spoilt = {**plain, "text_config": {**text, **given}, "vision_config": {**vision, **given}}
        edit(folder / "config.json", **(spoilt if number else plain))
        model = read_shell(folder, torch.float32)
        found = model.config.to_dict() | {"_name_or_path": ""}
        expected = expected or found
        assert found == expected


@pytest.mark.parametrize("value", VALUES)
def test_tokenizer_classes_are_tokenizers(pair: Pair, tmp_path: Path, watch: Watch, value: str) -> None:
    for number, name in enumerate(("config.json", "tokenizer_config.json")):
        folder = Path(shutil.copytree(pair[0], tmp_path / str(number)))
        edit(folder / name, tokenizer_class=VALUES[value])
        if VALUES[value] is None:
            load_tokenizer(folder)
            continue
        with pytest.raises(
            InputError, match=rf"{name}: field tokenizer_class: expected a tokenizer's class, got [^\n]*$"
        ):
            load_tokenizer(folder)


@pytest.mark.parametrize("name", ["AutoTokenizer", "AutoModel", "pipeline", "Trainer", "os"])
def test_other_classes_of_transformers_are_none(pair: Pair, tmp_path: Path, watch: Watch, name: str) -> None:
    folder = Path(shutil.copytree(pair[0], tmp_path / "spoilt"))
    edit(folder / "tokenizer_config.json", tokenizer_class=name)
    with pytest.raises(InputError, match=r"^[^\n]*$"):
        load_tokenizer(folder)


def test_a_tokenizer_that_needs_its_own_code(pair: Pair, tmp_path: Path, watch: Watch) -> None:
    """It is refused unless transformers knows which kind the model has: then `tokenizer.json` says it all."""
    folder = Path(shutil.copytree(pair[0], tmp_path / "spoilt"))
    edit(
        folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["trap.T", None]}, tokenizer_class="TrapTokenizer"
    )
    assert load_tokenizer(folder)("hi").input_ids == load_tokenizer(pair[0])("hi").input_ids
    edit(folder / "config.json", model_type="afmoe")
    with pytest.raises(InputError, match=r"field auto_map: the tokenizer has code of its own, which is never run$"):
        load_tokenizer(folder)


def test_a_tokenizer_knows_its_folder_and_no_other(pair: Pair, watch: Watch) -> None:
    tokenizer = load_tokenizer(pair[0])
    assert tokenizer.name_or_path == str(pair[0])
    assert "spmoe-tokenizer-" not in repr(vars(tokenizer))


def test_templates_cannot_leave_their_sandbox(pair: Pair, tmp_path: Path, watch: Watch) -> None:
    folder = Path(shutil.copytree(pair[0], tmp_path / "spoilt"))
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    edit(folder / "tokenizer_config.json", chat_template=template)
    tokenizer = load_tokenizer(folder)
    with pytest.raises(Exception, match="unsafe"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"torch_dtype": "load"}, "field torch_dtype: expected a number format such as 'bfloat16', got 'load'"),
        ({"dtype": 16}, "field dtype: expected a number format such as 'bfloat16', got 16"),
        ({"model_type": ["mixtral"]}, r"model type \['mixtral'\] is unknown to transformers"),
        ({"model_type": {}}, "model type {} is unknown to transformers"),
        ({"vision_config": {"quantization_config": {"quant_method": "fp8"}}}, "quantisation 'fp8' is not supported"),
        ({"quantization_config": [1]}, r"quantisation \[1\] is not supported"),
    ],
)
def test_one_line_names_the_field(
    pair: Pair, tmp_path: Path, watch: Watch, changed: dict[str, Any], message: str
) -> None:
    folders = copy(pair, tmp_path)
    for hostile in (0, 1):
        shutil.copy(pair[1 - hostile] / "config.json", folders[1 - hostile])
        edit(folders[hostile] / "config.json", **changed)
        with pytest.raises(InputError, match=rf"^{folders[hostile]}/config\.json: {message}[^\n]*$"):
            generate(folders)


def test_adapters_are_refused(pair: Pair, tmp_path: Path, watch: Watch) -> None:
    folders = copy(pair, tmp_path)
    edit(folders[1] / "adapter_config.json", base_model_name_or_path="evil/repo", peft_type="LORA")
    with pytest.raises(InputError, match=r"adapter_config\.json: adapters are not supported; [^\n]*$"):
        generate(folders)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("eos_token_id", "x", "numbers of tokens"),
        ("eos_token_id", [1, 1.5], "numbers of tokens"),
        ("pad_token_id", [0], "a whole number"),
        ("max_new_tokens", True, "a whole number"),
        ("temperature", "hot", "a number"),
        ("do_sample", 1, "true or false"),
    ],
)
def test_generation_options_of_the_wrong_type(tmp_path: Path, field: str, value: Any, expected: str) -> None:
    edit(tmp_path / "generation_config.json", **{field: value})
    with pytest.raises(InputError, match=rf"generation_config\.json: field {field}: expected {expected}, got [^\n]*$"):
        read_generation_config(tmp_path)


def test_generation_options_that_count(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) is None
    plain = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "eos_token_id": [1, 2],
        "pad_token_id": 0,
    }
    edit(tmp_path / "generation_config.json", **plain, cache_implementation="static", stop_strings=None)
    assert read_generation_config(tmp_path) == GenerationConfig(**plain)


def test_configurations_of_models_that_exist_are_as_before(tmp_path: Path) -> None:
    """With the fields that published files carry and no class declares."""
    published = {"torch_dtype": "bfloat16", "pretraining_tp": 1, "scoring_func": "softmax", "ep_size": 1}
    for family in FAMILIES:
        tiny_config(family).save_pretrained(tmp_path / family)
        edit(tmp_path / family / "config.json", **published)
    folders = [path.parent for path in sorted((ROOT / "engine/configs").glob("*/config.json"))]
    for folder in [*folders, *(tmp_path / family for family in FAMILIES)]:
        if '"quantization_config"' not in (folder / "config.json").read_text():
            assert read_config(folder).to_dict() == AutoConfig.from_pretrained(folder).to_dict()


def test_rotary_scaling_and_special_numbers_pass(tmp_path: Path) -> None:
    tiny_config("qwen3-moe").save_pretrained(tmp_path)
    scaling = {"type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    edit(tmp_path / "config.json", rope_parameters=None, rope_theta=5e5, rope_scaling=scaling)
    edit(tmp_path / "config.json", limit={"__float__": "Infinity"})
    ours, theirs = read_config(tmp_path), AutoConfig.from_pretrained(tmp_path)
    assert ours.to_dict() == theirs.to_dict()
    assert ours.rope_parameters["factor"] == 4.0 and ours.limit == float("inf")


def test_a_draft_is_what_transformers_loads(pair: Pair) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(pair[1], dtype=torch.float32)
    ours = load_draft(pair[1], torch.float32, torch.device("cpu"))
    assert ours.generation_config == theirs.generation_config
    assert ours.config._attn_implementation == theirs.config._attn_implementation
    assert ours.name_or_path == str(pair[1])
    expected, found = theirs.state_dict(), ours.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_trap_works(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain transformers asks for the kernel that a configuration names."""
    asked: list[object] = []

    def get_kernel(*args: object, **_options: object) -> None:
        asked.append(args[0])
        raise ImportError("refused by the test")

    monkeypatch.setattr(hub_kernels, "get_kernel", get_kernel)
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda *_: True)
    folder = Path(shutil.copytree(pair[1], tmp_path / "spoilt"))
    edit(folder / "config.json", attn_implementation="evil/repo")
    with pytest.raises(Exception, match=r"evil/repo|refused by the test"):
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    assert asked[:1] == ["evil/repo"]
