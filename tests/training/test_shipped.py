"""The card, the figures and the recordings of the bundled pair are those of its weights."""

from __future__ import annotations

import json

import pytest

from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import TokenLine
from tests.paths import ROOT, TRACES
from training.card import LEAST_COST, LEAST_ENTROPY, card
from training.origin import read_recipe
from training.recipe import PICO, PICO_32L, Recipe

PAIR = ROOT / "models" / "pico"
FIGURES = json.loads((PAIR / "figures.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("recipe", [PICO, PICO_32L], ids=lambda recipe: recipe.name)
def test_a_card_is_made_of_the_figures(recipe: Recipe) -> None:
    folder = PAIR.with_name(recipe.name)
    assert read_recipe(folder) == recipe
    run, figures = (json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("run", "figures"))
    assert (folder / "README.md").read_text(encoding="utf-8") == card(recipe, run, figures)


def test_the_figures_are_of_these_weights() -> None:
    for name, digest in FIGURES["weights"].items():
        assert f"{digest}  model.safetensors" in (PAIR / name / "SHA256SUMS").read_text().splitlines()


def test_it_is_worth_showing() -> None:
    """No layer collapses, experts matter, and they gain more than as many tokens of training do."""
    assert all(layer["entropy"] >= LEAST_ENTROPY for layer in FIGURES["layers"])
    assert FIGURES["random_routing_cost"] >= LEAST_COST
    assert FIGURES["perplexity"]["target"] < FIGURES["perplexity"]["control"] < FIGURES["perplexity"]["draft"]


@pytest.mark.parametrize(("name", "recipe", "least"), [("pico", PICO, 2000), ("pico-32l", PICO_32L, 1000)])
def test_its_traces_are_recorded_and_hold_all_that_a_trace_can(name: str, recipe: Recipe, least: int) -> None:
    trace = TraceFile(TRACES / f"{name}.jsonl")
    header = trace.header
    assert header.source.kind == "recorded" and header.tokens >= least and header.empty_cells == 0
    assert (header.model.layers, header.model.experts, header.model.top_k) == (
        recipe.layers,
        recipe.experts,
        recipe.top_k,
    )
    for line in trace:
        if isinstance(line, TokenLine):
            assert line.draft_prob is not None and line.weights is not None
            assert all(line.forecasts["draft"]) and all(line.forecasts["next_gate"][1:])
            assert not line.agree or not line.rejected
