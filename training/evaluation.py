"""Every figure of the model card, made by running the models on held-out text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from engine.checkpoints.model_pair import check_folders, load_whole
from engine.checkpoints.tokenizer_files import load_tokenizer
from engine.moe.layers import find_moe_layers
from spmoe.errors import InputError
from spmoe.trace.reliability import Reliability
from training.acceptance import acceptance
from training.accuracy import mean
from training.comparison import LayerComparison, compare
from training.corpus import Corpus
from training.likelihood import loss, predicted, spread
from training.origin import check_corpus, read_recipe
from training.predictors import learn_tables
from training.recipe import Recipe
from training.specialisation import expert_cosine, randomly_routed_loss
from training.stages import CONTROL, DRAFT, TARGET
from training.tokenizer import encode
from training.tokens import windows

TABLE_TOKENS = 400_000
"""Of training text, about, that tables of experts are learned from."""
SAMPLE = 96
"""Held-out windows on which layers are routed at random one by one."""


def evaluate(folder: Path, corpus: Corpus) -> dict[str, Any]:
    """The figures of the pair in `folder`, as it is distributed: bfloat16 weights, computed in float32.

    The control may be missing (null).  InputError where `corpus` is not what the pair was trained on, or a model is
    missing or bad.
    """
    recipe = read_recipe(folder)
    check_corpus(folder, corpus)
    has_control = (folder / CONTROL).is_dir()
    check_folders(folder / DRAFT, folder / TARGET, folder / CONTROL if has_control else None)
    draft, target = (_load(folder / name, recipe, name == TARGET) for name in (DRAFT, TARGET))
    tokenizer = load_tokenizer(folder / TARGET)
    learned, held_out = (
        windows(torch.tensor(encode(tokenizer, part)), recipe.context) for part in (corpus.learned, corpus.held_out)
    )
    order = torch.randperm(len(learned), generator=torch.Generator().manual_seed(recipe.seed_of("tables")))
    learned = learned[order[: -(-TABLE_TOKENS // recipe.context)]]
    seed = recipe.seed_of("evaluation")
    compared = compare(draft, target, held_out, learn_tables(target, learned))
    control = loss(_load(folder / CONTROL, recipe, False), held_out) if has_control else None
    accepted = acceptance(folder / TARGET, folder / DRAFT, held_out, seed % 2**32)
    figures: dict[str, Any] = {
        "format": "spmoe-figures/1",
        "recipe": recipe.name,
        "corpus": corpus.fingerprint,
        "weights": {
            name: hashlib.sha256((folder / name / "model.safetensors").read_bytes()).hexdigest()
            for name in (DRAFT, TARGET)
        },
        "parameters": {
            name: sum(each.numel() for each in model.parameters()) for name, model in ((DRAFT, draft), (TARGET, target))
        },
        "active_parameters": _active(target),
        "held_out": {"files": len(corpus.held_out), "tokens": predicted(held_out)},
        "table_tokens": predicted(learned),
        "perplexity": {
            "draft": math.exp(compared.draft_loss),
            "control": None if control is None else math.exp(control),
            "target": math.exp(compared.target_loss),
        },
        "agreement": compared.agreement,
        "overlap": compared.overlap,
        "acceptance": {name: rate._asdict() for name, rate in accepted._asdict().items()},
        "random_routing_cost": randomly_routed_loss(target, find_moe_layers(target), held_out, seed)
        - compared.target_loss,
        "lowest_entropy": min(each.entropy for each in compared.layers),
        "predictors": _means(compared.layers),
        "layers": _layers(target, compared.layers, spread(held_out, SAMPLE), seed),
        "reliability": _reliability([each.reliability for each in compared.layers]),
    }
    return {name: _rounded(each) for name, each in figures.items()}


def groups(layers: int) -> list[range]:
    """Of `layers` layers those that are looked at together: the first alone, since next to nothing stands before it
    that the models do not share; the lower half of the rest, the upper half; all but the first."""
    middle = layers // 2
    found = (range(1), range(1, middle), range(max(1, middle), layers), range(1, layers))
    return list(dict.fromkeys(each for each in found if each))


def _layers(target: Any, compared: Sequence[LayerComparison], sample: torch.Tensor, seed: int) -> list[dict[str, Any]]:
    """Per MoE layer, with what it costs to route this layer alone at random, on `sample`."""
    usual = loss(target, sample)
    return [
        {
            "usage": list(each.usage),
            "entropy": each.entropy,
            "norm": each.norm,
            "draft_norm": each.draft_norm,
            "attention_cosine": each.attention_cosine,
            "router_cosine": each.router_cosine,
            "expert_cosine": expert_cosine(layer),
            "random_routing_cost": randomly_routed_loss(target, [layer], sample, seed) - usual,
            "predictors": {name: accuracy._asdict() for name, accuracy in each.predictors.items()},
        }
        for layer, each in zip(find_moe_layers(target), compared, strict=True)
    ]


def _means(compared: Sequence[LayerComparison]) -> dict[str, Any]:
    """Of each predictor over all layers but the first; over the first where there is no other."""
    rated = [each.predictors for each in compared[1:] or compared]
    return {name: mean([each[name] for each in rated])._asdict() for name in rated[0]}


def _reliability(layers: Sequence[Reliability]) -> list[dict[str, Any]]:
    """Of each group of layers, `first_layer` to `last_layer`."""
    return [
        {
            "first_layer": group[0],
            "last_layer": group[-1],
            **reduce(Reliability.plus, [layers[number] for number in group]).to_json(),
        }
        for group in groups(len(layers))
    ]


def _active(target: Any) -> int:
    """Parameters that compute a token: all but the experts that it does not go to."""
    total: int = sum(each.numel() for each in target.parameters())
    for layer in find_moe_layers(target):
        experts = sum(each.numel() for each in layer.expert_parameters().values())
        total -= experts - experts // layer.experts.num_experts * target.config.num_experts_per_tok
    return total


def _load(folder: Path, recipe: Recipe, sparse: bool) -> Any:
    """The model in `folder`; InputError for one that `recipe` does not make."""
    model = load_whole(folder, torch.float32, torch.device("cpu"), None)
    made = {"hidden_size": recipe.hidden, "vocab_size": recipe.vocabulary, "max_position_embeddings": recipe.context}
    for name, expected in made.items():
        if (got := getattr(model.config, name, None)) != expected:
            raise InputError(f"{folder}: {name}: expected {expected}, as run.json says, got {got}")
    layers, found = recipe.layers if sparse else 0, len(find_moe_layers(model))
    if found != layers:
        raise InputError(f"{folder}: expected routed experts in {layers} layers, found them in {found}")
    return model


def _rounded(value: Any) -> Any:
    """With five significant digits: what differs behind them is rounding, of other threads and other processors."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
