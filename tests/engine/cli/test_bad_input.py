"""Bad input: one line on standard error that names the thing and what was expected, exit status 2, nothing left."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from benchmarks.engine.random_pair import write_random_pair
from engine.__main__ import main
from engine.decoding.draft_model import DraftModel
from engine.decoding.target_model import TargetModel
from engine.memory import copiers as copies
from spmoe.cli import Stopped
from tests.paths import ROOT, TRACES
from tests.words import with_defaults

pytestmark = pytest.mark.usefixtures("no_network")

PROMPT = ("--prompt", "hi", "--max-new-tokens", "6")
WEIGHTS = "model.safetensors"

Pair = tuple[Path, Path]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_random_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Makes a run that has to be refused, and returns what it says."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run(*words: object, status: int = 2, start: str = "error: ", begun: bool = False) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert main(["run", *map(str, words)]) == status
        text, said = capfd.readouterr()
        assert begun or text == ""
        assert said.startswith(start) and said.count("\n") == 1 and said.endswith("\n")
        assert sorted(tmp_path.rglob("*")) == before  # no output, no half of one
        assert not [each.name for each in threading.enumerate() if each.name.startswith("spmoe")]
        return said

    return run


def copy(folder: Path, to: Path, **config: Any) -> Path:
    """A copy with another configuration."""
    shutil.copytree(folder, to)
    configure(to, **config)
    return to


def configure(folder: Path, **config: Any) -> None:
    known = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**known, **config}), "utf-8")


def an_expert(folder: Path) -> str:
    return next(name for name in load_file(folder / WEIGHTS) if ".experts." in name)


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def cut(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def split(folder: Path) -> None:
    """Two shards, of which the second is missing."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:9]}, folder / "a.safetensors", metadata={"format": "pt"})
    shards = {name: "a.safetensors" if name in names[:9] else "b.safetensors" for name in names}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": shards}), "utf-8")


def pickled(folder: Path) -> None:
    """A pickle that would end the test if it were loaded."""
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\n_exit\n(I7\ntR.")


BROKEN: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), [f"expected {WEIGHTS} or {WEIGHTS}.index.json"]),
    "a missing shard": (split, ["b.safetensors: file is missing", "names it"]),
    "half a file": (cut, [f"{WEIGHTS}: truncated"]),
    "a pickle": (pickled, ["pytorch_model.bin is a pickle", "never opened"]),
    "another shape": (
        lambda folder: change(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(5)})),
        ["tensor model.norm.weight: expected shape [64], got [5]"],
    ),
    "a tensor less": (
        lambda folder: change(folder, lambda tensors: tensors.pop("model.norm.weight")),
        ["no tensor for model.norm.weight"],
    ),
    "fewer layers": (
        lambda folder: configure(folder, num_hidden_layers=2),
        ["tensor model.layers.2.", "the model in config.json has none of that name"],
    ),
    "a bias more": (
        lambda folder: change(
            folder, lambda tensors: tensors.update({"model.layers.1.self_attn.q_proj.bias": torch.zeros(64)})
        ),
        ["tensor model.layers.1.self_attn.q_proj.bias: the model in config.json has none of that name"],
    ),
    "more layers": (lambda folder: configure(folder, num_hidden_layers=6), ["no tensor for model.layers.4."]),
    "another width": (
        lambda folder: configure(folder, hidden_size=128),
        [": expected shape [", ", 128], got [", ", 64]"],
    ),
    "another vocabulary": (
        lambda folder: configure(folder, vocab_size=300),
        ["expected shape [300, 64], got [259, 64]"],
    ),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), ["config.json: cannot be read: No such"]),
    "half a configuration": (lambda folder: (folder / "config.json").write_text("{"), ["config.json: expected JSON"]),
    "a list": (lambda folder: (folder / "config.json").write_text("[1]"), ["config.json: expected a JSON object"]),
    "a nest": (lambda folder: (folder / "config.json").write_text("[" * 10**6), ["config.json: expected JSON"]),
    "half a tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), ["tokenizer cannot be loaded"]),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("which", ["target", "draft"])
def test_broken_checkpoints(refused: Refused, pair: Pair, tmp_path: Path, which: str, kind: str) -> None:
    broken, words = BROKEN[kind]
    folder = copy(pair[which == "draft"], tmp_path / "broken")
    broken(folder)
    model, draft = (folder, pair[1]) if which == "target" else (pair[0], folder)
    said = refused("--model", model, "--draft", draft, *PROMPT)
    assert str(folder) in said
    for word in words:
        assert word in said


def test_broken_experts(refused: Refused, pair: Pair, tmp_path: Path) -> None:
    name = an_expert(pair[0])
    folder = copy(pair[0], tmp_path / "bent")
    change(folder, lambda tensors: tensors.update({name: torch.zeros(5, 3)}))
    assert f"tensor {name}: expected shape [16, 64], got [5, 3]" in refused("--model", folder, *PROMPT)
    folder = copy(pair[0], tmp_path / "short")
    change(folder, lambda tensors: tensors.pop(name))
    assert "no tensor for model.layers.0.mlp.experts" in refused("--model", folder, *PROMPT)


def test_half_a_generation_configuration(refused: Refused, pair: Pair, tmp_path: Path) -> None:
    folder = copy(pair[0], tmp_path / "broken")
    (folder / "generation_config.json").write_text("{")
    assert "generation_config.json: expected JSON" in refused("--model", folder, *PROMPT)


@pytest.mark.parametrize("ends", ['"x"', "1e400", "[[1]]", "[1, 1.5]", "true"])
def test_ends_that_are_no_tokens(refused: Refused, pair: Pair, tmp_path: Path, ends: str) -> None:
    folder = copy(pair[0], tmp_path / "broken")
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {ends}}}')
    said = refused("--model", folder, *PROMPT, "--against-plain")
    path = folder / "generation_config.json"
    assert f"error: {path}: field eos_token_id: expected numbers of tokens, got " in said


def test_layers_without_any_expert(refused: Refused, pair: Pair, tmp_path: Path) -> None:
    folder = copy(pair[0], tmp_path / "none", num_local_experts=0)
    assert f"{folder / 'config.json'}: " in (said := refused("--model", folder, *PROMPT))
    assert "has no routed experts" in said


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, ["quantisation 'fp8' is not supported"]),
        ({"model_type": "foo"}, ["model type 'foo' is unknown"]),
        ({"model_type": "foo", "auto_map": {"AutoModel": "x.Y"}}, ["auto_map", "never run"]),
        ({"model_type": "vit"}, ["model type 'vit' is no causal language model"]),
        ({"hidden_size": "wide"}, ["cannot be loaded", "hidden_size"]),
    ],
)
@pytest.mark.parametrize("which", ["target", "draft"])
def test_models_that_are_not_supported(
    refused: Refused, pair: Pair, tmp_path: Path, which: str, config: dict[str, Any], words: list[str]
) -> None:
    folder = copy(pair[which == "draft"], tmp_path / "other", **config)
    model, draft = (folder, pair[1]) if which == "target" else (pair[0], folder)
    said = refused("--model", model, "--draft", draft, *PROMPT)
    for word in [str(folder), *words]:
        assert word in said


def test_code_that_comes_with_a_known_model_never_runs(pair: Pair, tmp_path: Path) -> None:
    code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": "evil.T"}
    folders = [copy(each, tmp_path / each.name, auto_map=code) for each in pair]
    for folder in folders:
        (folder / "evil.py").write_text("import os\nos._exit(7)\n")
    assert main(["run", "--model", str(folders[0]), "--draft", str(folders[1]), *PROMPT]) == 0


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (["--model", "nowhere"], ["nowhere: no such folder"]),
        (["--model", "mistralai/Mixtral-8x7B-v0.1"], ["no such folder", "hf download"]),
        (["--model", "TARGET/config.json"], ["config.json: expected a checkpoint's folder, got a file"]),
        (["--model", "TARGET", "--draft", "nowhere"], ["nowhere: no such folder"]),
        (["--model", "DRAFT"], ["MistralForCausalLM has no routed experts", "Mixture-of-Experts"]),
        (["--draft", "DRAFT"], ["--draft: expected --model too"]),
        (["--model", "TARGET", "--gamma", "3"], ["gamma: expected a draft model"]),
        (["--model", "TARGET", "--layer-map", "0,1,2,3"], ["layer map: expected a draft"]),
        (["--model", "TARGET", "--draft", "DRAFT", "--layer-map", "0,1,2"], ["layer map: expected 4", "got 0,1,2"]),
        (["--model", "TARGET", "--draft", "DRAFT", "--layer-map", "0,1,2,4"], ["0..3", "got 0,1,2,4"]),
        (["--model", "TARGET", "--draft", "DRAFT", "--layer-map", "0,x"], ["--layer-map", "numbers between commas"]),
    ],
)
def test_models(refused: Refused, pair: Pair, models: list[str], words: list[str]) -> None:
    named = [word.replace("TARGET", str(pair[0])).replace("DRAFT", str(pair[1])) for word in models]
    said = refused(*named, *PROMPT)
    for word in words:
        assert word in said


def test_a_model_needs_a_prompt(refused: Refused, pair: Pair) -> None:
    assert "expected --prompt TEXT" in refused("--model", pair[0])


def test_a_model_without_a_tokenizer(refused: Refused, pair: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "mute"
    shutil.copytree(pair[0], folder, ignore=shutil.ignore_patterns("token*", "special*"))
    assert "expected a tokenizer beside the model" in refused("--model", folder, *PROMPT)


def test_tensors_of_no_layer_may_be_there_beside_it(pair: Pair, tmp_path: Path) -> None:
    """Towers for pictures, heads for other uses."""
    folders = [copy(each, tmp_path / each.name) for each in pair]
    for folder in folders:
        change(folder, lambda tensors: tensors.update({"vision_tower.layers.0.weight": torch.zeros(5)}))
    assert main(["run", "--model", str(folders[0]), "--draft", str(folders[1]), *PROMPT]) == 0


def test_tokenizers_that_differ_in_two_tokens(
    refused: Refused, pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained = Tokenizer(models.BPE(unk_token="<pad>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=259, special_tokens=specials, show_progress=False)
    trained.train([str(ROOT / "LICENSE")], trainer)
    ours, theirs = (copy(each, tmp_path / each.name) for each in pair)
    for folder in (ours, theirs):
        trained.save(str(folder / "tokenizer.json"))
    assert main(["run", "--model", str(ours), "--draft", str(theirs), "--prompt", "the work", *PROMPT[2:]]) == 0
    known = json.loads((theirs / "tokenizer.json").read_text("utf-8"))
    vocabulary = known["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.__getitem__)[200:202]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (theirs / "tokenizer.json").write_text(json.dumps(known), "utf-8")
    capfd.readouterr()
    said = refused("--model", ours, "--draft", theirs, "--prompt", "the work", *PROMPT[2:])
    assert "expected the target's tokenizer; token 200 is" in said and repr(first) in said and repr(second) in said


def test_a_prompt_longer_than_the_model_can_read(refused: Refused, pair: Pair) -> None:
    said = refused("--model", pair[0], "--prompt", "x" * 4000, "--max-new-tokens", "128")
    assert "the model has positions for 4096 tokens" in said and "got 4129" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt"], ["--prompt", "at least one"]),
        (["--prompt", "broken \udcff"], ["prompt 1: expected text in utf-8"]),
        (["--max-new-tokens", "0"], ["--max-new-tokens", "at least 1", "'0'"]),
        (["--max-new-tokens", "-1"], ["--max-new-tokens", "at least 1", "'-1'"]),
        (["--max-new-tokens", "nan"], ["--max-new-tokens", "at least 1", "'nan'"]),
        (["--max-new-tokens", "9999999999999"], ["positions for 4096 tokens"]),
        (["--temperature", "nan"], ["--temperature", "from 0 up", "'nan'"]),
        (["--temperature", "inf"], ["--temperature", "'inf'"]),
        (["--temperature=-1"], ["--temperature", "'-1'"]),
        (["--seed=-1"], ["--seed", "2^63 - 1", "'-1'"]),
        (["--seed", str(2**63)], ["--seed", "2^63 - 1"]),
        (["--seed", "1.5"], ["--seed", "'1.5'"]),
        (["--gamma=-1"], ["gamma", "0 to 1024", "-1"]),
        (["--gamma", "99999999"], ["gamma", "0 to 1024"]),
        (["--gamma", "nan"], ["--gamma", "nan"]),
        (["--cutoff=-1"], ["cutoff -1", "0..4"]),
        (["--cutoff", "99"], ["cutoff 99", "0..4"]),
        (["--slots", "0"], ["slots", "1 to 32", "got 0"]),
        (["--slots", "33"], ["slots", "1 to 32", "got 33"]),
        (["--slots=-5"], ["slots", "got -5"]),
        (["--slots", "3", "--policy", "spmoe.per-layer"], ["spmoe.per-layer", "at least 4 slots", "are 3"]),
        (["--cache", "nan"], ["cache", "above 0 and up to 1", "nan"]),
        (["--cache", "inf"], ["cache", "inf"]),
        (["--cache", "0"], ["cache", "above 0"]),
        (["--cache", "1.01"], ["cache", "up to 1"]),
        (["--cache", "0.001"], ["cache", "at least one of 32 experts"]),
        (["--vram", "1MiB"], ["vram 1.0 MiB", "at least one expert of 12.0 KiB", "workspace"]),
        (["--vram", "nan"], ["vram", "18GiB", "nan"]),
        (["--vram=-1"], ["vram", "-1"]),
        (["--vram", "0"], ["vram", "at least one byte"]),
        (["--vram", "1GiB", "--slots", "3"], ["--slots", "--vram", "not allowed"]),
        (["--context", "0"], ["--context", "at least 1"]),
        (["--context", "1"], ["context: expected at least 2"]),
        (["--context", "8"], ["prompt 1: context: room is reckoned for 8 tokens", "6 new"]),
        (["--host-memory", "1KiB"], ["16 slots", "1.3 MiB", "only 1.0 KiB are available"]),
        (["--host-memory", "x"], ["host_memory", "18GiB"]),
        (["--link-gbps", "nan"], ["link_gbps", "above 0", "nan"]),
        (["--link-gbps", "0"], ["link_gbps", "above 0"]),
        (["--link-gbps", "1e300"], ["link_gbps", "1e+300"]),
        (["--link-gbps", "2", "--virtual-time", "rtx-4090"], ["link_gbps", "virtual time"]),
        (["--policy", "nope"], ["unknown policy 'nope'", "spmoe.per-layer"]),
        (["--policy", "adapmoe.gated"], ["adapmoe.gated", "changes the model's output", "--lossy"]),
        (["--policy", "clairvoyant"], ["clairvoyant", "--record FILE", "--earlier FILE"]),
        (["--policy", "static.popular"], ["static.popular", "other requests", "--earlier FILE"]),
        (["--policy", "clairvoyant", "--earlier", "missing.jsonl"], ["missing.jsonl", "No such file"]),
        (["--policy", "clairvoyant", "--earlier", "-"], ["--earlier", "expected a file"]),
        (["--policy", "clairvoyant", "--earlier", str(ROOT / "README.md")], ["README.md:1"]),
        (
            ["--policy", "clairvoyant", "--earlier", str(TRACES / "mixtral.jsonl")],
            ["mixtral.jsonl", "4 x 8 experts, got 32 x 8"],
        ),
        (["--hardware", "nope"], ["hardware 'nope'", "rtx-4090"]),
        (["--hardware", "missing.json"], ["missing.json", "No such file"]),
        (["--virtual-time", "nope"], ["hardware 'nope'"]),
        (["--dtype", "int8"], ["--dtype", "int8", "bfloat16"]),
        (["--device", "tpu"], ["device", "'tpu'"]),
        (["--device", "cuda"], ["device cuda", "no CUDA device"]),
        (["--chat"], ["--chat", "no chat template"]),
        (["--stats", "nowhere/x"], ["nowhere/x", "cannot be written"]),
        (["--log", "nowhere/x"], ["nowhere/x", "cannot be written"]),
        (["--timeline", "nowhere/x"], ["nowhere/x", "cannot be written"]),
        (["--record", "nowhere/x"], ["nowhere/x", "cannot be written"]),
        (["--record", "."], ["directory"]),
        (["--record", "r.jsonl", "--max-new-tokens", "1"], ["--record", "at least 2"]),
        (["--stats", "same", "--log", "same"], ["a file of its own"]),
        (["--timeline", "same", "--record", "./same"], ["a file of its own"]),
        (["--log", "-"], ["--log", "expected a file"]),
        (["--frobnicate"], ["--frobnicate"]),
    ],
)
def test_options(
    refused: Refused, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    said = refused("--model", pair[0], "--draft", pair[1], *with_defaults(PROMPT, options))
    for word in words:
        assert word in said


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ...")


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [
        ((torch, "zeros"), FULL, ["16 slots take 192.0 KiB", "--cache or --slots"]),
        (
            (TargetModel, "start_prompt"),
            FULL,
            ["out of memory on cpu", "16 experts take 192.0 KiB", "--cache or --slots"],
        ),
        ((DraftModel, "_layer_reached"), FULL, ["out of memory on cpu", "--cache or --slots"]),
        ((TargetModel, "start_prompt"), MemoryError(), ["out of memory on cpu"]),
        (
            (TargetModel, "start_prompt"),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            ["out of memory on cpu"],
        ),
    ],
)
def test_memory_that_runs_out_names_the_budget(
    refused: Refused,
    pair: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[Any, str],
    error: Exception,
    words: list[str],
) -> None:
    monkeypatch.setattr(*place, raising(error))
    # The draft runs for the first time when a token has been put out: what stands for it depends on the weights.
    begun = place == (DraftModel, "_layer_reached")
    said = refused("--model", pair[0], "--draft", pair[1], *PROMPT, "--log", tmp_path / "log", begun=begun)
    for word in words:
        assert word in said


def test_a_copy_that_fails_twice_is_one_line(refused: Refused, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies.MemoryCopier, "copy", raising(OSError("the bus is on fire")))
    assert "the bus is on fire" in refused("--model", pair[0], "--draft", pair[1], *PROMPT)


@pytest.mark.parametrize(
    ("stop", "status", "said"), [(KeyboardInterrupt(), 130, "interrupted"), (Stopped(15), 143, "stopped by SIGTERM")]
)
@pytest.mark.parametrize(
    "place",
    [
        ("engine.cli.inputs", "check_folders"),
        ("engine.cli.inputs", "make_plan"),
        ("engine.engine", "load_rest"),
        ("engine.engine", "load_experts"),
        ("engine.decoding.target_model.TargetModel", "start_prompt"),
        ("engine.execution.driver.Driver", "poll"),
        ("engine.decoding.draft_model.DraftModel", "_layer_reached"),
        ("engine.cli.run", "compare"),
        ("engine.cli.run", "write_trace"),
    ],
)
def test_whoever_stops_it_where_ever(
    pair: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: tuple[str, str],
    stop: BaseException,
    status: int,
    said: str,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(".".join(place), raising(stop))
    files = [word for name in ("stats", "log", "record") for word in (f"--{name}", str(tmp_path / name))]
    models = ["--model", str(pair[0]), "--draft", str(pair[1])]
    assert main(["run", *models, *PROMPT, "--against-plain", *files]) == status
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert not list(tmp_path.iterdir())
    assert not [each.name for each in threading.enumerate() if each.name.startswith("spmoe")]
