# ruff: noqa: E402
"""Loading: the same bits as transformers, without the experts ever being in the model; and all that can be wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
pytest.importorskip("transformers", reason="the engine needs transformers")

from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from engine.checkpoints.loader import read_blueprint
from engine.checkpoints.tokenizer_files import load_tokenizer
from engine.memory.host_store import HostStore
from engine.memory.layout import Layout
from spmoe.errors import InputError
from spmoe.state.keys import expert_key
from tests.engine.loading import Loaded, load
from tests.engine.tiny import FAMILIES, HIDDEN, WIDTH, eager_model, save_tiny, tiny_config, tokens
from tests.paths import ROOT

pytestmark = pytest.mark.usefixtures("no_network")

CASES = [(family, torch.float32) for family in FAMILIES] + [("gpt-oss", torch.bfloat16), ("mixtral", torch.float64)]


class PlainStore:
    """Blobs in one tensor; ones all over at first, so that what is not written shows."""

    def __init__(self, layout: Layout, keys: int) -> None:
        self.layout = layout
        self.data = torch.ones((keys, layout.size), dtype=torch.uint8)

    def blob(self, key: int) -> torch.Tensor:
        return self.data[key]


def from_store(experts: Any, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """All experts of a layer in the order in which "eager" computes them, each read from the store."""

    def linear(x: torch.Tensor, name: str, fields: dict[str, torch.Tensor]) -> torch.Tensor:
        y = x @ fields[name] if experts.is_transposed else torch.nn.functional.linear(x, fields[name])
        return y + fields[f"{name}_bias"] if experts.has_bias else y

    out = torch.zeros_like(states)
    for expert in torch.unique(chosen).tolist():
        rank, token = torch.where((chosen == expert).t())
        fields = experts.fields_of(expert)
        hidden = linear(experts._apply_gate(linear(states[token], "gate_up_proj", fields)), "down_proj", fields)
        out.index_add_(0, token, (hidden * weights[token, rank, None]).to(out.dtype))
    return out


ALL_EXPERTS_FUNCTIONS.register("from_store", from_store)


def load_runnable(folder: Path, dtype: torch.dtype) -> Loaded:
    """The model in `folder`, computing its experts from a plain store."""
    loaded = load(folder, PlainStore, dtype=dtype)
    layout, experts = loaded.blueprint.layout, loaded.blueprint.geometry.experts
    for layer in loaded.layers:
        layer.experts.fields_of = lambda expert, index=layer.index: layout.views(
            loaded.store.blob(expert_key(index, expert, experts))
        )
    loaded.model.set_experts_implementation("from_store")
    return loaded


def logits(model: Any, seed: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(24, seed)).logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints of several shards, one per family; not to be changed."""
    folders: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in folders:
            folders[family] = save_tiny(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return folder


@pytest.fixture
def mixtral(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(saved("mixtral"), tmp_path / "mixtral"))


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_logits_are_those_of_eager(saved: Callable[[str], Path], family: str, dtype: torch.dtype) -> None:
    folder = saved(family)
    assert len(list(folder.glob("*.safetensors"))) > 2
    reference, loaded = eager_model(folder, dtype), load_runnable(folder, dtype)
    for seed in range(3):
        assert torch.equal(logits(loaded.model, seed), logits(reference, seed))
    # and the experts count: any two of them changed over change the result
    first, second = loaded.store.data[0].clone(), loaded.store.data[1].clone()
    loaded.store.data[0], loaded.store.data[1] = second, first
    assert not torch.equal(logits(loaded.model), logits(reference))


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_blobs_hold_the_experts_and_the_model_does_not(
    saved: Callable[[str], Path], family: str, dtype: torch.dtype
) -> None:
    folder = saved(family)
    reference, loaded = eager_model(folder, dtype), load(folder, PlainStore, dtype=dtype)
    layout, geometry = loaded.blueprint.layout, loaded.blueprint.geometry
    assert (geometry.layers, geometry.experts, geometry.top_k) == FAMILIES[family][2:5]
    assert loaded.store.data.shape == (geometry.keys, layout.size)
    for layer in loaded.layers:
        stacked = dict(reference.get_submodule(layer.name).named_parameters())
        assert not dict(layer.experts.named_parameters())
        for expert in range(geometry.experts):
            fields = layout.views(loaded.store.blob(expert_key(layer.index, expert, geometry.experts)))
            assert fields.keys() == stacked.keys()
            assert all(torch.equal(fields[name], stacked[name][expert]) for name in stacked)
    rest = {name: each for name, each in reference.state_dict().items() if ".experts." not in name}
    found = loaded.model.state_dict()
    assert found.keys() == rest.keys()
    assert all(torch.equal(found[name], rest[name]) and found[name].dtype == rest[name].dtype for name in rest)


def test_the_host_store_takes_them(saved: Callable[[str], Path]) -> None:
    plain, loaded = (load(saved("mixtral"), kind, dtype=torch.float32) for kind in (PlainStore, HostStore))
    loaded.store.seal()
    for key in range(loaded.blueprint.geometry.keys):
        loaded.store.check(key)
        ours, theirs = (loaded.blueprint.layout.views(each.store.blob(key)) for each in (loaded, plain))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_memory_needed_is_what_is_there_afterwards(saved: Callable[[str], Path], family: str) -> None:
    loaded = load(saved(family), PlainStore, dtype=torch.float32)
    held = [*loaded.model.parameters(), *loaded.model.buffers()]
    distinct = {each.data_ptr(): each.nbytes for each in held if each.nbytes}
    assert loaded.blueprint.host_bytes == loaded.store.data.nbytes + sum(distinct.values())


def test_the_model_is_an_ordinary_one(saved: Callable[[str], Path]) -> None:
    folder = saved("qwen3-moe")
    loaded, reference = load(folder, PlainStore, dtype=torch.float32), eager_model(folder, torch.float32)
    assert type(loaded.model) is type(reference)
    assert not loaded.model.training
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight  # tied, as configured
    assert loaded.model.name_or_path == str(folder)
    assert loaded.model.generation_config == reference.generation_config


def test_each_load_has_a_configuration_of_its_own(saved: Callable[[str], Path]) -> None:
    first, second = (load(saved("mixtral"), PlainStore, dtype=torch.float32).model for _ in range(2))
    first.set_experts_implementation("from_store")
    assert second.config._experts_implementation != "from_store"


def test_one_file_loads_like_many(saved: Callable[[str], Path], tmp_path: Path) -> None:
    single = save_tiny(tmp_path, "mixtral", shard="1GB")
    assert [path.name for path in single.glob("*.safetensors")] == ["model.safetensors"]
    many = load_runnable(saved("mixtral"), torch.float32)
    assert torch.equal(logits(load_runnable(single, torch.float32).model), logits(many.model))


def test_no_weight_is_left_in_the_files(mixtral: Path) -> None:
    """The files may be replaced once the model is loaded."""
    loaded = load_runnable(mixtral, torch.float32)
    before = logits(loaded.model)
    for shard in mixtral.glob("*.safetensors"):
        with shard.open("r+b") as file:
            file.write(b"\xff" * shard.stat().st_size)
    assert torch.equal(logits(loaded.model), before)


def test_extra_prediction_layers_are_ignored(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("deepseek-v3"), tmp_path / "v3"))
    before = logits(eager_model(folder, torch.float32))
    # A published checkpoint's layer for multi-token prediction comes after the last layer.
    for name in ("mlp.experts.0.gate_proj.weight", "mlp.gate.weight", "eh_proj.weight"):
        add_tensor(folder, f"model.layers.4.{name}", torch.ones(3, 3))
    edit(folder / "config.json", num_nextn_predict_layers=1)
    assert torch.equal(logits(load_runnable(folder, torch.float32).model), before)


def test_generation_options_come_from_their_file(mixtral: Path) -> None:
    GenerationConfig(eos_token_id=[7, 8], pad_token_id=0).save_pretrained(mixtral)
    model = load(mixtral, PlainStore, dtype=torch.float32).model
    assert model.generation_config.eos_token_id == [7, 8]
    (mixtral / "generation_config.json").unlink()
    model = load(mixtral, PlainStore, dtype=torch.float32).model
    assert model.generation_config.eos_token_id == 2  # the model's own


def test_tokenizers(mixtral: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    with pytest.raises(InputError, match=r"^[^\n]*: tokenizer cannot be loaded: [^\n]+$"):
        load_tokenizer(mixtral)
    plain = Tokenizer(models.WordLevel({"<unk>": 0, "an": 1, "expert": 2}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>").save_pretrained(mixtral)
    assert load_tokenizer(mixtral)("an expert or an expert").input_ids == [1, 2, 0, 1, 2]


def test_code_in_a_checkpoint_is_never_run(mixtral: Path) -> None:
    """Families that transformers knows load without the code that many of their checkpoints still carry."""
    trap = mixtral / "trap.py"
    trap.write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch(); Config = Model = object")
    edit(mixtral / "config.json", auto_map={"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"})
    loaded = load(mixtral, PlainStore, dtype=torch.float32)
    assert type(loaded.model).__module__ == "transformers.models.mixtral.modeling_mixtral"
    edit(mixtral / "config.json", model_type="trapped")
    refused(
        mixtral, r"config\.json: model type 'trapped' is unknown .* code of its own \(auto_map\), which is never run"
    )
    assert not (mixtral / "ran").exists()


def edit(path: Path, **fields: Any) -> None:
    """Sets fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def shard_of(folder: Path, tensor: str) -> Path:
    return folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][tensor]


def add_tensor(folder: Path, name: str, tensor: torch.Tensor) -> None:
    """A tensor more, in a file of its own."""
    save_file({name: tensor}, folder / f"{name}.safetensors")
    index = folder / "model.safetensors.index.json"
    edit(index, weight_map={**json.loads(index.read_text())["weight_map"], name: f"{name}.safetensors"})


def change_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = shard_of(folder, name)
    save_file({**load_file(path), name: change(load_file(path)[name]).contiguous()}, path)


def drop_tensor(folder: Path, name: str, index: bool = True) -> None:
    """Takes a tensor out of its file and, usually, out of the index."""
    path = shard_of(folder, name)
    save_file({other: tensor for other, tensor in load_file(path).items() if other != name}, path)
    if index:
        listed = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        edit(folder / "model.safetensors.index.json", weight_map={key: listed[key] for key in listed if key != name})


def refused(folder: Path, message: str) -> None:
    """Loading fails before any expert is stored, in one line that names the place."""

    def no_store(_layout: Layout, _keys: int) -> PlainStore:
        pytest.fail("a store was made")

    with pytest.raises(InputError) as error:
        load(folder, no_store, dtype=torch.float32)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(folder))
    error.match(message)


UP = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
NORM = "model.layers.1.input_layernorm.weight"


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def to_pickle(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing shard": (lambda folder: shard_of(folder, UP).unlink(), r"model-\d+-of-\d+\.safetensors: file is missing;"),
    "truncated shard": (
        lambda folder: truncate(shard_of(folder, UP), shard_of(folder, UP).stat().st_size - 1),
        r"model-\d+-of-\d+\.safetensors: truncated or no safetensors file: ",
    ),
    "truncated header": (lambda folder: truncate(shard_of(folder, UP), 20), r"truncated or no safetensors file: "),
    "empty shard": (lambda folder: truncate(shard_of(folder, UP), 0), r"truncated or no safetensors file: "),
    "misshapen expert": (
        lambda folder: change_tensor(folder, UP, lambda each: each[:-1]),
        rf"tensor {UP}: expected shape \[{WIDTH}, {HIDDEN}\], got \[{WIDTH - 1}, {HIDDEN}\]$",
    ),
    "transposed expert": (
        lambda folder: change_tensor(folder, UP, lambda each: each.t()),
        rf"tensor {UP}: expected shape \[{WIDTH}, {HIDDEN}\], got \[{HIDDEN}, {WIDTH}\]$",
    ),
    "misshapen norm": (
        lambda folder: change_tensor(folder, NORM, lambda each: each[:-1]),
        rf"tensor {NORM}: expected shape \[{HIDDEN}\], got \[{HIDDEN - 1}\]$",
    ),
    "missing expert": (
        lambda folder: drop_tensor(folder, UP),
        r"no tensor for model\.layers\.1\.mlp\.experts\.gate_up_proj of expert 2 \(part 2 of 2\)$",
    ),
    "missing norm": (lambda folder: drop_tensor(folder, NORM), rf"no tensor for {NORM}$"),
    "tensor not where the index says": (
        lambda folder: drop_tensor(folder, UP, index=False),
        rf"tensor {UP} is missing; model\.safetensors\.index\.json says that it is here$",
    ),
    "one expert too many": (
        lambda folder: add_tensor(folder, UP.replace(".2.", ".4."), torch.zeros(WIDTH, HIDDEN)),
        r"experts\.4\.w3\.weight: expected experts 0 to 3$",
    ),
    "more experts configured": (
        lambda folder: edit(folder / "config.json", num_local_experts=5),
        r"no tensor for model\.layers\.0\.mlp\.experts\.gate_up_proj of expert 4 \(part 1 of 2\)$",
    ),
    "8-bit experts": (
        lambda folder: change_tensor(folder, UP, lambda each: each.to(torch.float8_e4m3fn)),
        rf"tensor {UP}: expected a float of 16, 32 or 64 bits; quantised weights are not supported$",
    ),
    "quantised": (
        lambda folder: edit(folder / "config.json", quantization_config={"quant_method": "mxfp4"}),
        r"config\.json: quantisation 'mxfp4' is not supported; expected plain weights$",
    ),
    "pickle": (
        to_pickle,
        r": pytorch_model\.bin is a pickle, which can run code and is never opened; expected model\.safe",
    ),
    "index out of the folder": (
        lambda folder: edit(folder / "model.safetensors.index.json", weight_map={UP: "../model.safetensors"}),
        r"index\.json: field weight_map: expected names of \.safetensors files, got '\.\./model\.safetensors'$",
    ),
    "index without tensors": (
        lambda folder: edit(folder / "model.safetensors.index.json", weight_map={}),
        r"index\.json: field weight_map: expected the tensors and their files$",
    ),
    "no weights": (
        lambda folder: [path.unlink() for path in folder.glob("*.safetensors*")],
        r": expected model\.safetensors or model\.safetensors\.index\.json$",
    ),
    "no configuration": (
        lambda folder: (folder / "config.json").unlink(),
        r"config\.json: cannot be read: No such file",
    ),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: expected JSON: "),
    "no object": (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json: expected a JSON object$"),
    "wrong type": (
        lambda folder: edit(folder / "config.json", hidden_size="wide"),
        r": config\.json cannot be loaded: .*hidden_size",
    ),
    "no model": (
        lambda folder: edit(folder / "config.json", num_attention_heads=0),
        r"config\.json: no model can be built from it: ",
    ),
    "unknown": (
        lambda folder: edit(folder / "config.json", model_type="mixtrall"),
        r"config\.json: model type 'mixtrall' is unknown to transformers$",
    ),
    "dense": (
        lambda folder: edit(folder / "config.json", model_type="mistral"),
        r"config\.json: MistralForCausalLM has no routed experts; expected a Mixture-of-Experts model$",
    ),
    "no language model": (
        lambda folder: edit(folder / "config.json", model_type="vit"),
        r"config\.json: model type 'vit' is no causal language model$",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_bad_checkpoints(mixtral: Path, case: str) -> None:
    spoil, message = SPOILED[case]
    spoil(mixtral)
    refused(mixtral, message)


def test_a_missing_bias_among_stacked_experts(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("gpt-oss"), tmp_path / "gpt-oss"))
    drop_tensor(folder, "model.layers.1.mlp.experts.down_proj_bias")
    refused(folder, r"no tensor for model\.layers\.1\.mlp\.experts\.down_proj_bias \(part 1 of 1\)$")


def test_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", r"config\.json: cannot be read: No such file or directory$")


def test_too_little_memory_is_said_before_anything_is_loaded(saved: Callable[[str], Path]) -> None:
    folder = saved("mixtral")
    needed = read_blueprint(folder, torch.float32).host_bytes
    made: list[int] = []

    def make(layout: Layout, keys: int) -> PlainStore:
        made.append(keys)
        return PlainStore(layout, keys)

    with pytest.raises(InputError, match=r"^[^\n]*: the weights of the model in float32 take [\d.]+ KiB [^\n]*$"):
        load(folder, make, dtype=torch.float32, available=needed - 1)
    assert made == []
    load(folder, make, dtype=torch.float32, available=needed)
    assert made == [12]


PEAK = """
import sys, threading, time
import torch
from pathlib import Path
from engine.checkpoints.loader import read_blueprint
from tests.engine.loading import load

torch.set_num_threads(1)


class Store:
    def __init__(self, layout, keys):
        self.data = torch.empty((keys, layout.size), dtype=torch.uint8)

    def blob(self, key):
        return self.data[key]


def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.001)


load(sys.argv[1], Store, dtype=torch.float32)  # a small one: what is imported on the way is not the model's
running, peak, before = True, 0, anonymous()
thread = threading.Thread(target=watch)
thread.start()
loaded = load(sys.argv[2], Store, dtype=torch.float32)
running = False
thread.join()
print(max(peak, anonymous()) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of anonymous memory")
def test_the_peak_of_anonymous_memory_is_one_model(saved: Callable[[str], Path], tmp_path: Path) -> None:
    sizes = {"vocab_size": 2000, "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8}
    with torch.device("meta"):
        large = AutoModelForCausalLM.from_config(
            tiny_config("mixtral", num_local_experts=8, num_hidden_layers=4, **sizes)
        )
    large.to_empty(device="cpu").save_pretrained(tmp_path, max_shard_size="50MB")
    shards = list(tmp_path.glob("*.safetensors"))
    model = json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    assert model >= 200 * 1024**2
    assert len(shards) >= 4
    command = [sys.executable, "-c", PEAK, str(saved("mixtral")), str(tmp_path)]
    found = int(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)
    # Less than a model would mean that the measurement missed it.
    assert 0.95 <= found / model <= 1.05, f"{found / 2**20:.0f} of {model / 2**20:.0f} MiB"
