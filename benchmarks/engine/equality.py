"""Whether the engine puts out what plain transformers does, for a tiny random model of a family."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final, NamedTuple

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.engine.families import SMALL, tiny_model
from engine.checkpoints.model_pair import load_whole
from engine.checkpoints.refusing import quiet
from engine.decoding.kv_cache import lasting_layers
from engine.engine import Engine
from engine.options import DEFAULT_POLICY
from spmoe.errors import InputError

PROMPT: Final = tuple(range(3, 23))
"""Longer than the small models' sliding windows, and than what their indexers look at."""
NEW: Final = 16
POLICIES: Final = (DEFAULT_POLICY, "on-demand.lru")
EQUAL: Final = "equal"
ALONE: Final = "equal, without speculation"


class Verdict(NamedTuple):
    """What came of a family: `result` is `EQUAL` or `ALONE`, or the one line that says why it does not run."""

    model_type: str
    model_class: str
    result: str


def verdict(model_type: str) -> Verdict:
    """Greedy decoding in float64 by plain transformers, then by the engine: with and without a draft, by the default
    policy and by on-demand LRU, with half of the experts in slots."""
    with tempfile.TemporaryDirectory() as name, quiet():
        folder, draft = Path(name, "target"), Path(name, "draft")
        try:
            model = tiny_model(model_type)
            model.save_pretrained(folder)
            expected = _plain(folder)
        except Exception as error:  # Whatever a family's own code raises.
            return Verdict(model_type, "", f"plain transformers fails: {_line(error)}")
        _save_draft(draft)
        result = ALONE if lasting_layers(model) else EQUAL
        for policy in POLICIES:
            for second in (None, draft):
                try:
                    found = _run(folder, second, policy)
                except InputError as error:
                    return Verdict(model_type, type(model).__name__, _line(error).replace(f"{folder}", "FOLDER"))
                if found != expected:
                    drafted = "with" if second else "without"
                    result = f"differs under {policy} {drafted} a draft"
        return Verdict(model_type, type(model).__name__, result)


@torch.inference_mode()
def _plain(folder: Path) -> tuple[int, ...]:
    model = load_whole(folder, torch.float64, torch.device("cpu"), "eager")
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=NEW, eos_token_id=None)
    inputs = torch.tensor([PROMPT])
    return tuple(model.generate(inputs, attention_mask=torch.ones_like(inputs))[0, len(PROMPT) :].tolist())


def _run(folder: Path, draft: Path | None, policy: str) -> tuple[int, ...]:
    with Engine.from_pretrained(folder, draft, device="cpu", dtype="float64", policy=policy, cache=0.5) as engine:
        return engine.generate(PROMPT, NEW, ignore_eos=True).tokens


def _save_draft(folder: Path) -> None:
    """A Llama as wide and as deep as the targets, so that its states go through their routers."""
    torch.manual_seed(1)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    LlamaForCausalLM(LlamaConfig(**{name: SMALL[name] for name in names}, pad_token_id=0)).save_pretrained(folder)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
