"""The model card: what the pair is, what it was trained on, and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.corpus import HELD_OUT, LICENCE
from training.recipe import Recipe

LEAST_ENTROPY = 0.9
LEAST_COST = 0.3
"""What is wanted of every layer's usage entropy, and of the nats that random routing costs."""


def card(recipe: Recipe, run: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """Markdown; `run` is run.json, `figures` come from `evaluate`."""
    perplexity, accepted = figures["perplexity"], figures["acceptance"]
    layers = figures["layers"]
    entropy = min(each["entropy"] for each in layers)
    dense, more = (steps * recipe.step_tokens / 1e6 for steps in (recipe.dense_steps, recipe.upcycle_steps))
    lines = [
        f"# {recipe.name}: a small draft and target",
        "",
        f"`draft` is a dense Mistral, `target` a Mixtral upcycled from it, both with {recipe.layers} layers, "
        f"{recipe.hidden} wide; the target has {recipe.experts} experts per layer, of which {recipe.top_k} compute a "
        f"token. They are made to study the offloading of experts, not to write programs. Made by "
        f"`python -m training run --recipe {recipe.name} --out DIR`; the figures by `python -m training evaluate DIR`.",
        "",
        f"- Data: {run['corpus']['name']}, without tests, encodings and pydoc_data; licence {LICENCE}. About one file "
        f"in {HELD_OUT}, chosen by its path's hash, is held out ({figures['held_out']['files']} files, "
        f"{figures['held_out']['tokens']:,} tokens). SHA-256 of all: `{run['corpus']['sha256']}`.",
        f"- Training: {recipe.dense_steps:,} steps of the dense model ({dense:.1f} M tokens), then "
        f"{recipe.upcycle_steps:,} ({more:.1f} M) of the target; the control is the dense model trained on with the "
        "same tokens as the target. All settings are in `run.json`.",
        f"- Context: {recipe.context} tokens; a byte-level BPE of {recipe.vocabulary:,} tokens.",
        *(f"- SHA-256 of `{name}/model.safetensors`: `{value}`." for name, value in figures["weights"].items()),
        "",
        "| held-out perplexity, windows of the context's length | |",
        "|---|---:|",
        *(f"| {name} | {_shown(value, '.2f')} |" for name, value in perplexity.items()),
        "",
        "| draft and target | |",
        "|---|---:|",
        f"| accepted / drafted, greedy, gamma 4 | {accepted['greedy']:.3f} |",
        f"| accepted / drafted, sampled at temperature 1 | {accepted['sampled']:.3f} |",
        f"| accepted / drafted, greedy, first round behind real text | {accepted['prefixes']:.3f} |",
        f"| same likeliest token on held-out text | {figures['agreement']:.3f} |",
        f"| sum of min(p, q) on held-out text | {figures['overlap']:.3f} |",
        f"| random routing costs, nats per token (wanted: {LEAST_COST}) | {figures['random_routing_cost']:.3f} |",
        f"| lowest usage entropy of a layer (wanted: {LEAST_ENTROPY}) | {entropy:.3f} |",
        "",
        "Per layer: entropy of usage; of the draft's state sent through the target's router, how often its first "
        "expert is used, and is the first, and the share of used experts named; length of the residual streams behind "
        "attention; mean cosine between experts. Little or nothing stands before layer 0 that the models do not share: "
        "foreseeing it is no feat.",
        "",
        "| layer | entropy | top-1 used | top-1 exact | recall | norm, target | norm, draft | cosine |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {number} | {each['entropy']:.3f} | {each['top1_used']:.3f} | {each['top1_exact']:.3f} "
            f"| {each['recall']:.3f} | {each['norm']:.1f} | {each['draft_norm']:.1f} | {each['cosine']:.3f} |"
            for number, each in enumerate(layers)
        ),
        "",
    ]
    return "\n".join(lines)


def _shown(value: float | None, form: str) -> str:
    return "not here" if value is None else format(value, form)
