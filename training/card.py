"""The model card: what the pair is, what it was trained on, and its figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from training.corpus import HELD_OUT, LICENCE
from training.recipe import Recipe

LEAST_ENTROPY = 0.9
LEAST_COST = 0.3
"""What is wanted of every layer's usage entropy, and of the nats that random routing costs."""

PREDICTORS: Final = {
    "draft": "the draft's state through the target's router",
    "token_table": "what this token id used in training text",
    "popularity": "what all tokens used in training text",
    "next_gate": "the target's own state one layer before",
    "token_before": "what the token before used",
}


def card(recipe: Recipe, run: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """Markdown; `run` is run.json, `figures` come from `evaluate`."""
    sections = (_head(recipe, run, figures), _pair(figures), _predictors(figures), _layers(figures), _trust(figures))
    return "\n".join("\n".join([*section, ""]) for section in sections)


def _head(recipe: Recipe, run: Mapping[str, Any], figures: Mapping[str, Any]) -> Iterator[str]:
    dense, more = (steps * recipe.step_tokens / 1e6 for steps in (recipe.dense_steps, recipe.upcycle_steps))
    yield from (
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
        f"same tokens as the target, at {recipe.control_gain:g} of the dense rates. All settings are in `run.json`; "
        "[the loss](curve.png).",
        "- Size: "
        + ", ".join(f"{name} {count / 1e6:.2f} M parameters" for name, count in figures["parameters"].items())
        + f" (of the target {figures['active_parameters'] / 1e6:.2f} M compute a token), in bfloat16. The weights have "
        "this project's licence, Apache 2.0.",
        f"- Context: {recipe.context} tokens; a byte-level BPE of {recipe.vocabulary:,} tokens.",
    )
    yield from (f"- SHA-256 of `{name}/model.safetensors`: `{value}`." for name, value in figures["weights"].items())


def _pair(figures: Mapping[str, Any]) -> Iterator[str]:
    accepted = figures["acceptance"]
    yield from _table(
        ("held-out perplexity, windows of the context's length", ""),
        ((name, _shown(value, ".2f")) for name, value in figures["perplexity"].items()),
    )
    yield ""
    yield from _table(
        ("draft and target (in brackets: standard error over requests)", ""),
        (
            ("accepted / drafted, greedy, gamma 4", _rate(accepted["greedy"])),
            ("accepted / drafted, sampled at temperature 1", _rate(accepted["sampled"])),
            ("accepted / drafted, greedy, first round behind real text", _rate(accepted["prefixes"])),
            ("same likeliest token on held-out text", _shown(figures["agreement"])),
            ("sum of min(p, q) on held-out text", _shown(figures["overlap"])),
            (f"random routing costs, nats per token (wanted: {LEAST_COST})", _shown(figures["random_routing_cost"])),
            (f"lowest usage entropy of a layer (wanted: {LEAST_ENTROPY})", _shown(figures["lowest_entropy"])),
        ),
    )
    yield ""
    yield (
        "Greedy text of so small a model soon repeats itself, and repetitions are easily drafted: the rate behind real "
        "text is more telling."
    )


def _predictors(figures: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "## Predictors of the target's experts",
        "",
        "On held-out text, means over all layers but layer 0, whose input the two models share. *Used*: the expert "
        "named first is among those used; *exact*: it is the router's first; *recall*: share of the used experts among "
        f"as many named, one more, two more. Tables are learned from {figures['table_tokens']:,} tokens of training "
        "text.",
        "",
    )
    yield from _table(
        ("predictor", "used", "exact", "recall", "+1", "+2"),
        (
            (PREDICTORS[name], *(_shown(value) for value in figures["predictors"][name].values()))
            for name in PREDICTORS
            if name in figures["predictors"]
        ),
    )


def _layers(figures: Mapping[str, Any]) -> Iterator[str]:
    layers = figures["layers"]
    yield from ("Per layer, how often the expert named first is used:", "")
    yield from _table(
        ("layer", *PREDICTORS),
        (
            (number, *(_shown(each["predictors"].get(name, {}).get("top1_used")) for name in PREDICTORS))
            for number, each in enumerate(layers)
        ),
    )
    yield from (
        "",
        "## Layer by layer",
        "",
        "Entropy of the experts' usage, and the smallest and largest share of an expert; nats lost when this layer "
        "alone is routed at random; mean cosine between experts, of all weights; norm of the residual streams after "
        "attention; mean cosine between draft and target of the attention's output, and of the router's input.",
        "",
    )
    yield from _table(
        (
            *("layer", "entropy", "least used", "most used", "random costs", "experts' cosine"),
            *("norm, target", "norm, draft", "attention cosine", "router cosine"),
        ),
        (
            (
                number,
                *(_shown(each) for each in (one["entropy"], min(one["usage"]), max(one["usage"]))),
                *(_shown(one[name]) for name in ("random_routing_cost", "expert_cosine")),
                *(_shown(one[name], ".1f") for name in ("norm", "draft_norm")),
                *(_shown(one[name]) for name in ("attention_cosine", "router_cosine")),
            )
            for number, one in enumerate(layers)
        ),
    )


def _trust(figures: Mapping[str, Any]) -> Iterator[str]:
    group = figures["reliability"][-1]
    yield from (
        "## Calibration of the router's probability",
        "",
        f"The draft's state through the target's router, layers {group['first_layer']} to {group['last_layer']}: by "
        "the probability of the expert named first, how often it is the first of those used, and is used. Expected "
        f"calibration error: {group['first_error']:.3f} of being the first, {group['used_error']:.3f} of being used.",
        "",
    )
    yield from _table(
        ("probability", "forecasts", "mean", "first", "used"),
        (
            (
                f"{each['low']:.1f} to {each['high']:.1f}",
                f"{each['cells']:,}",
                *(_shown(each[name]) for name in ("mean", "first", "used")),
            )
            for each in group["bins"]
        ),
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """In Markdown; the first column is text or a number of a layer, the others are numbers."""
    yield f"| {' | '.join(headings)} |"
    yield "|---" + "|---:" * (len(headings) - 1) + "|"
    yield from (f"| {' | '.join(map(str, row))} |" for row in rows)


def _rate(rate: Mapping[str, Any]) -> str:
    return _shown(rate["share"]) + ("" if rate["error"] is None else f" ({rate['error']:.3f})")


def _shown(value: float | None, form: str = ".3f") -> str:
    return "n/a" if value is None else format(value, form)
