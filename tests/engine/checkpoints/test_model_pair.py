# ruff: noqa: E402
"""A draft beside its target: names of special tokens, and families that count heads otherwise or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
transformers = pytest.importorskip("transformers", reason="the engine needs transformers")

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.engine.random_pair import PairShape, byte_tokenizer, write_random_pair
from engine.__main__ import main
from engine.checkpoints.checkpoint import read_checkpoint
from engine.checkpoints.loader import read_blueprint
from engine.checkpoints.model_pair import check_tokenizers, describe_draft
from engine.engine import Engine
from spmoe.errors import InputError

pytestmark = pytest.mark.usefixtures("no_network")

Pair = tuple[Path, Path]

COMMON = {"vocab_size": 259, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, **COMMON}
WITHOUT_KV_HEADS = {
    "GPTNeoXConfig": ({**SMALL, "intermediate_size": 32}, 32),
    "GPT2Config": ({"n_embd": 32, "n_head": 4, "n_layer": 2, **COMMON}, 32),
    "OPTConfig": ({**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 32}, 32),
    "FalconConfig": (SMALL, 8),
    "GPTBigCodeConfig": ({"n_embd": 32, "n_head": 4, "n_layer": 2, **COMMON}, 8),
}
"""Families of drafts, and the width of the keys that a layer of each caches per token."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_random_pair(tmp_path_factory.mktemp("pair"), PairShape(layers=2, hidden=32, experts=4))


def tokenizer(*specials: str, words: tuple[str, ...] = ("a", "b")) -> Any:
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    plain.add_special_tokens(list(specials))
    return PreTrainedTokenizerFast(tokenizer_object=plain)


def test_special_tokens_may_differ_in_name() -> None:
    assert check_tokenizers(tokenizer("<x>", "<y>"), tokenizer("<x>", "<y>"), "draft") == ()
    assert check_tokenizers(tokenizer("<x>", "<y>"), tokenizer("<x>"), "draft") == ()
    (note,) = check_tokenizers(tokenizer("<x>", "<y>", "<z>"), tokenizer("<x>", "<1>", "<2>"), "draft")
    assert note == (
        "draft: special token 3 is '<1>' to the draft and '<y>' to the target, as 1 more; they are taken for the same"
    )


@pytest.mark.parametrize(
    ("theirs", "number"),
    [
        (tokenizer("<y>", "<x>"), 2),  # swapped: a name that both know counts
        (tokenizer("<x>", words=("a", "c")), 1),  # a word
        (tokenizer(words=("a", "b", "c")), 2),  # a word to one, special to the other
    ],
)
def test_all_others_may_not(theirs: Any, number: int) -> None:
    with pytest.raises(InputError, match=rf"^draft: expected the target's tokenizer; token {number} is "):
        check_tokenizers(tokenizer("<x>", "<y>"), theirs, "draft")


def test_the_note_is_printed_once(pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    draft = Path(shutil.copytree(pair[1], tmp_path / "draft"))
    for path in draft.glob("*token*.json"):
        path.write_text(path.read_text().replace("<pad>", "<|reserved_0|>"))
    options = ["--model", str(pair[0]), "--draft", str(draft), "--prompt", "hi", "--max-new-tokens", "4"]
    assert main(["run", *options, "--device", "cpu"]) == 0
    said = capfd.readouterr().err
    assert said.count("special token 258 is '<|reserved_0|>' to the draft and '<pad>' to the target") == 1


@pytest.mark.parametrize("family", WITHOUT_KV_HEADS)
def test_drafts_without_a_number_of_kv_heads(pair: Pair, tmp_path: Path, family: str) -> None:
    options, width = WITHOUT_KV_HEADS[family]
    model = AutoModelForCausalLM.from_config(getattr(transformers, family)(**options))
    assert describe_draft(model, "x").kv_bytes_per_token == 2 * 2 * 2 * width
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    found = []
    for draft in (None, tmp_path):
        with Engine.from_pretrained(pair[0], draft, device="cpu", dtype="float32", cache=0.5) as engine:
            found.append(engine.generate("def", 5).tokens)
    assert found[0] == found[1]


def test_drafts_without_attention_are_refused() -> None:
    model = AutoModelForCausalLM.from_config(
        transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **COMMON)
    )
    with pytest.raises(InputError, match=r"^x: MambaForCausalLM keeps a state instead of keys and values, [^\n]*$"):
        describe_draft(model, "x")


def test_experts_outside_the_interface_are_told_from_none(tmp_path: Path) -> None:
    sizes = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 32, "intermediate_size_mlp": 32, "head_dim": 8}
    transformers.Llama4TextConfig(**sizes, num_local_experts=2).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"experts of Llama4ForCausalLM are computed by code of its own, [^\n]*$"):
        read_blueprint(tmp_path, torch.float32)


@pytest.mark.parametrize("which", ["target", "draft"])
def test_a_stale_file_beside_an_index(pair: Pair, tmp_path: Path, which: str) -> None:
    """As in transformers the single file counts; what it lacks is said with a word on the index."""
    folders = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in pair]
    folder = folders[which == "draft"]
    name = "model.layers.1.input_layernorm.weight"
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "whole.safetensors", metadata={"format": "pt"})
    index = dict.fromkeys(tensors, "whole.safetensors")
    (folder / "model.safetensors.index.json").write_text(str({"weight_map": index}).replace("'", '"'))
    tensors.pop(name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert name not in read_checkpoint(folder).tensors
    with pytest.raises(InputError, match=rf"no tensor for {name}; model\.safetensors was read, and not the files in "):
        Engine.from_pretrained(*folders, device="cpu", dtype="float32")
    (folder / "model.safetensors").unlink()
    with Engine.from_pretrained(*folders, device="cpu", dtype="float32", cache=0.5) as engine:
        assert engine.generate("def", 2).tokens
