"""A recipe that is no row of the registry runs like one that is."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest

import sim
from spmoe.errors import InputError
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import RECIPES, select
from spmoe.scheduler.log import verify_log
from tests.paths import ROOT
from tests.sim.files import small_trace

LRU = RECIPES["on-demand.lru"]


@pytest.fixture(scope="module")
def same_again() -> Recipe:
    """The recipe of the example."""
    recipe = runpy.run_path(str(ROOT / "examples" / "add_a_policy.py"))["SAME_AGAIN"]
    assert isinstance(recipe, Recipe)
    return recipe


def test_it_is_replayed_beside_rows(tmp_path: Path, same_again: Recipe) -> None:
    found = sim.replay(small_trace(tmp_path), ["on-demand.lru", same_again], slots=8)
    results = {result.to_json()["policy"]: result.to_json() for result in found.results}
    assert list(results) == ["on-demand.lru", "example.same-again"]
    assert (
        results["on-demand.lru"]["prefetch_recall"] in (None, 0)
        and results["example.same-again"]["prefetch_recall"] > 0
    )


def test_its_log_replays_with_it_alone(tmp_path: Path, same_again: Recipe) -> None:
    log = tmp_path / "log.jsonl"
    sim.replay(small_trace(tmp_path), same_again, slots=8, log=log)
    assert verify_log(log, recipe=same_again).recipe == "example.same-again"
    with pytest.raises(InputError, match=r"unknown policy 'example\.same-again'"):
        verify_log(log)
    with pytest.raises(InputError, match="a fresh scheduler says"):
        verify_log(log, recipe=replace(same_again, eviction=LRU.eviction))


def test_a_recipe_stands_for_itself_unless_another_has_its_name(same_again: Recipe) -> None:
    assert select([same_again, "on-demand.lru", same_again, LRU]) == [same_again, LRU]
    for other in (replace(LRU, eviction=same_again.eviction), replace(same_again, name="on-demand.lru")):
        with pytest.raises(InputError, match=r"another recipe is called on-demand\.lru"):
            select(other)
    with pytest.raises(InputError, match="expected names or recipes"):
        select([3])  # type: ignore[list-item]
