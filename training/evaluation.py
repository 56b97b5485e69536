"""Every figure of the model card, made by running the models on held-out text."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint import read_json
from engine.loader import load_tokenizer
from engine.pair import load_draft, require_folder
from spmoe.errors import InputError
from training.acceptance import acceptance
from training.comparison import compare, loss, random_routing_cost
from training.corpus import Corpus
from training.recipe import Recipe
from training.stages import CONTROL, DRAFT, TARGET
from training.tokenizer import encode
from training.tokens import windows


def evaluate(folder: Path, corpus: Corpus) -> dict[str, Any]:
    """The figures of the pair in `folder`, as shipped: bfloat16 weights, computed in float32.

    The control may be missing (null).  InputError where `corpus` is not what the pair was trained on, or a model is
    missing or bad.
    """
    recipe = read_recipe(folder)
    known = _object(folder, "corpus")
    if known.get("sha256") != corpus.fingerprint:
        raise InputError(
            f"{folder}: trained on {known.get('name')}, sha256 {known.get('sha256')}; "
            f"this is {corpus.name}, sha256 {corpus.fingerprint}"
        )
    for name in (DRAFT, TARGET):
        require_folder(folder / name)
    stream = torch.tensor(encode(load_tokenizer(folder / TARGET), corpus.held_out))
    held_out = windows(stream, recipe.context)
    draft, target = (_load(folder / name) for name in (DRAFT, TARGET))
    compared = compare(draft, target, held_out)
    control = loss(_load(folder / CONTROL), held_out) if (folder / CONTROL).is_dir() else None
    seed = recipe.seed_of("evaluation")
    figures: dict[str, Any] = {
        "format": "spmoe-figures/1",
        "recipe": recipe.name,
        "corpus": corpus.fingerprint,
        "weights": {
            name: hashlib.sha256((folder / name / "model.safetensors").read_bytes()).hexdigest()
            for name in (DRAFT, TARGET)
        },
        "held_out": {"files": len(corpus.held_out), "tokens": held_out[:, 1:].numel()},
        "perplexity": {
            "draft": math.exp(compared.draft_loss),
            "control": None if control is None else math.exp(control),
            "target": math.exp(compared.target_loss),
        },
        "agreement": compared.agreement,
        "overlap": compared.overlap,
        "acceptance": acceptance(folder / TARGET, folder / DRAFT, held_out, seed % 2**32)._asdict(),
        "random_routing_cost": random_routing_cost(target, held_out, seed),
        "layers": [each._asdict() for each in compared.layers],
    }
    return {name: _rounded(each) for name, each in figures.items()}


def read_recipe(folder: Path) -> Recipe:
    """The recipe of the run in `folder`."""
    return Recipe.from_json(_object(folder, "recipe"), str(folder / "run.json"))


def _object(folder: Path, name: str) -> dict[str, Any]:
    """A field of run.json."""
    path = folder / "run.json"
    found = read_json(path).get(name)
    if not isinstance(found, dict):
        raise InputError(f"{path}: field {name}: expected an object")
    return found


def _load(folder: Path) -> Any:
    return load_draft(folder, torch.float32, torch.device("cpu"))


def _rounded(value: Any) -> Any:
    """With five significant digits: what differs behind them is rounding, of other threads and other processors."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
