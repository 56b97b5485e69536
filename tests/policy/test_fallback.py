"""Which row stands in for another where forecasts are not to be had."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from spmoe.policy.parts.gating import SensitivityGate
from spmoe.policy.parts.io_plan import Batched
from spmoe.policy.parts.placement import PopularSet
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import RECIPES, fallback, recipe, registry
from spmoe.policy.sp_moe.gates import DraftGate, NextGate


@pytest.mark.parametrize(
    ("name", "lacking", "instead"),
    [
        ("spmoe.paper", ["draft"], "spmoe.next-gate"),
        ("spmoe.paper", ["draft", "next_gate"], "spmoe.popular"),
        ("spmoe.next-gate", ["next_gate"], "spmoe.popular"),
        ("spmoe.per-layer", ["draft"], "spmoe.per-layer.next-gate"),
        ("spmoe.per-layer", ["draft", "next_gate"], "spmoe.per-layer.popular"),
        ("spmoe.refined", ["draft"], "spmoe.per-layer.next-gate"),
        ("spmoe.refined", ["draft", "next_gate"], "spmoe.per-layer.popular"),
        ("next-gate", ["draft", "next_gate"], "spmoe.popular"),
        ("spmoe.popular", ["draft", "next_gate"], None),
        ("adapmoe", ["next_gate"], None),
    ],
)
def test_the_first_that_does_without(name: str, lacking: Iterable[str], instead: str | None) -> None:
    found = fallback(recipe(name), set(lacking))
    assert (found and found.name) == instead


def test_whoever_needs_the_draft_can_do_without_any_forecast() -> None:
    for one in RECIPES.values():
        if "draft" in one.needs:
            least = fallback(one, {"draft", "next_gate"})
            assert least is not None and not least.needs and least.placement == one.placement
            assert isinstance(least.io, Batched) and least.speculation.gamma(4) == one.speculation.gamma(4)


def row(name: str, fallback: str = "", **parts: object) -> Recipe:
    return Recipe(name=name, summary="", source="", fallback=fallback, **parts)  # type: ignore[arg-type]


DRAFT, GATE = DraftGate(), NextGate()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row("a", "b", predictor=DRAFT)], "a falls back to b, and no recipe is called that"),
        ([row("a", "a", predictor=DRAFT)], "must need less"),
        ([row("a", "b", predictor=GATE), row("b", "a", predictor=GATE)], "must need less"),
        ([row("a", "b", predictor=GATE), row("b", predictor=DRAFT)], "must need less"),
        ([row("a", "b"), row("b")], "must need less"),
        ([row("a", "b", predictor=DRAFT), row("b", placement=PopularSet())], "must need less"),
        ([row("a", "b", predictor=DRAFT), row("b", gate=SensitivityGate())], "changes the output"),
    ],
)
def test_what_is_no_fallback(rows: list[Recipe], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        registry(rows)


def test_a_fallback_may_come_later_and_need_what_the_row_needs() -> None:
    popular = PopularSet()
    rows = [row("a", "b", predictor=DRAFT, placement=popular), row("b", "c", predictor=GATE, placement=popular)]
    assert list(registry([*rows, row("c", placement=popular)])) == ["a", "b", "c"]
