"""Whose slots they are, and who is there at the start."""

from __future__ import annotations

import pytest

from spmoe.errors import InputError
from spmoe.policy.parts.pace import Pace
from spmoe.policy.parts.placement import GlobalPool, LayerPools, PopularSet
from spmoe.policy.registry import RECIPES, recipe, registry
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.scheduler import Scheduler
from spmoe.state.commands import Purpose, Submit
from spmoe.state.events import BatchArrived, RequestBegun
from spmoe.state.keys import Shape
from spmoe.state.residency import Pool


def config(name: str, slots: int, layers: int = 3) -> SchedulerConfig:
    return SchedulerConfig(
        recipe=name, layers=layers, experts=4, top_k=2, slots=slots, gamma=2, cutoff=0, pace=Pace(1, 1, 1, 1, 1)
    )


def test_one_pool_for_all() -> None:
    assert GlobalPool().pools(Shape(3, 4, 1), 7) == (Pool(0, 7),)
    assert GlobalPool().pool_of(Shape(3, 4, 1)) == (0,) * 12


def test_the_remainder_goes_to_the_first_layers() -> None:
    assert LayerPools().pools(Shape(3, 4, 1), 8) == (Pool(0, 3), Pool(3, 3), Pool(6, 2))
    assert LayerPools().pools(Shape(3, 4, 1), 3) == (Pool(0, 1), Pool(1, 1), Pool(2, 1))
    assert LayerPools().pool_of(Shape(2, 3, 1)) == (0, 0, 0, 1, 1, 1)


@pytest.mark.parametrize("name", ["on-demand.lru-per-layer", "spmoe.per-layer"])
def test_a_cache_per_layer_needs_a_slot_per_layer(name: str) -> None:
    Scheduler(config(name, slots=3))
    with pytest.raises(InputError, match="a slot for each of the 3 layers, but there are 2"):
        Scheduler(config(name, slots=2))


def test_the_popular_leave_room_for_staging() -> None:
    assert PopularSet(staging=2).initial((5, 3, 1, 0), Shape(2, 3, 1), slots=4) == (5, 3)
    assert PopularSet(staging=2).initial((5, 3), Shape(2, 3, 1), slots=2) == ()
    assert PopularSet(staging=2).initial((5,), Shape(2, 3, 1), slots=1) == ()


def test_the_popular_are_loaded_as_a_request_begins() -> None:
    scheduler = Scheduler(config("static.popular", slots=4))
    loaded = []
    commands = scheduler.handle(RequestBegun(0, 0, popular=(7, 2, 9, 0)))
    while commands:
        (submit, *_) = commands
        assert isinstance(submit, Submit) and submit.purpose is Purpose.PRELOAD
        loaded += [load.key for load in submit.loads]
        commands = commands[1:] + scheduler.handle(BatchArrived(0, submit.batch, 0, 0))
    assert loaded == [2, 7]


def test_unknown_and_repeated_names_are_errors() -> None:
    with pytest.raises(InputError, match=r"unknown policy 'belady'; there are on-demand.lru, "):
        recipe("belady")
    one = RECIPES["next-gate"]
    with pytest.raises(ValueError, match="two recipes are called next-gate"):
        registry([one, one])


def test_the_future_must_be_given() -> None:
    with pytest.raises(ValueError, match="clairvoyant policy needs the future"):
        Scheduler(config("clairvoyant", slots=4))
