"""MoE-SpAc: counters from the tokens of each pass, prefetches for the next one, and levels that keep residents."""

from __future__ import annotations

import pytest

from spmoe.policy.parts.horizon import NextLayer
from spmoe.policy.parts.pace import Pace
from spmoe.policy.parts.predictor import Predictor
from spmoe.policy.parts.scope import Scope
from spmoe.policy.systems.moe_spac import FROZEN, CounterPredictor, LevelOrder, Levels, UtilityCounters, updated
from spmoe.state.events import LayerDone, LayerReached, PrefillBegun, StepBegun
from tests.policy.caches import bound, wants

EXPERTS = 4


def predictor(layers: int = 2) -> CounterPredictor:
    counters = UtilityCounters().build(Scope(layers, EXPERTS, 2, 0, NextLayer(), Pace(1, 1, 1, 1, 1)), None)
    assert isinstance(counters, CounterPredictor)
    return bound(counters)


def layer_pass(counters: CounterPredictor, layer: int, tokens: dict[int, int]) -> list[int]:
    """One pass of a layer; the keys wanted behind it, in the order in which they would travel."""
    counters.clear()
    counters.layer_reached(LayerReached(0, layer, tuple(tokens), tuple(tokens.values())))
    assert not counters.wanted
    counters.layer_done(LayerDone(0, layer, ()))
    return wants(counters)


def begin(counters: CounterPredictor, tokens: int = 9) -> None:
    counters.step_begun(StepBegun(0, tokens - 1), tokens - 1)


@pytest.mark.parametrize(
    ("counter", "tokens", "then"),
    [(0, 0, 0), (0, 4, 0), (0, 5, 1), (1, 5, 1), (1, 6, 2), (1, 1, 1), (1, 0, 0), (3, 2, 2), (4, 9, 5), (5, 10, 5)],
)
def test_counters(counter: int, tokens: int, then: int) -> None:
    assert updated(counter, tokens) == then


def test_wants_every_counter_above_zero_highest_first() -> None:
    counters = predictor()
    begin(counters)
    assert layer_pass(counters, 1, {2: 5, 0: 6, 3: 4}) == [4, 6]  # Both at 1: first in, first out.
    assert layer_pass(counters, 1, {2: 6, 0: 1}) == [6, 4]  # 2 and 1.
    assert layer_pass(counters, 1, {3: 8}) == [6, 7]  # 1 and 1; that of expert 0 fell to 0.
    assert layer_pass(counters, 1, {3: 1}) == [7]
    assert layer_pass(counters, 0, {0: 1, 1: 1}) == []


def test_later_layers_queue_behind_earlier_ones_of_the_same_level() -> None:
    counters = predictor()
    begin(counters)
    for layer, tokens in ((1, 9), (0, 9)):
        counters.layer_reached(LayerReached(0, layer, (0,), (tokens,)))
        counters.layer_done(LayerDone(0, layer, ()))
    assert wants(counters) == [4, 0]


def test_a_token_at_a_time_promotes_nothing() -> None:
    counters = predictor()
    begin(counters, tokens=1)
    for _ in range(20):
        assert layer_pass(counters, 0, {0: 1, 1: 1}) == []


@pytest.mark.parametrize(("tokens", "level"), [(31, 1), (32, 0)])
def test_large_batches_leave_the_counters_alone(tokens: int, level: int) -> None:
    counters = predictor()
    counters.prefill_begun(PrefillBegun(0, tokens))
    assert layer_pass(counters, 0, {1: tokens}) == [1] * level
    assert counters.level(1) == level
    begin(counters)
    assert layer_pass(counters, 0, {1: 9}) == [1]


def order(counters: CounterPredictor, keys: range) -> LevelOrder:
    levels = Levels().order((0,) * (2 * EXPERTS), counters, EXPERTS)
    assert isinstance(levels, LevelOrder)
    levels.touch(keys)
    return levels


def test_only_level_zero_leaves_for_a_prefetch_lowest_key_first() -> None:
    counters = predictor()
    levels, everyone = order(counters, range(8)), range(8)
    begin(counters)
    layer_pass(counters, 0, {0: 5, 2: 6})
    assert [levels.evict(0, everyone, (), 0, demand=False) for _ in range(7)] == [1, 3, 4, 5, 6, 7, None]
    assert counters.level(0) == counters.level(2) == 1


def test_a_higher_level_does_not_displace_a_lower_one_but_a_demand_does() -> None:
    counters = predictor()
    begin(counters)
    for _ in range(3):
        layer_pass(counters, 0, {0: 9, 1: 9, 3: 5})
    assert [counters.level(key) for key in range(4)] == [3, 3, 0, 1]
    levels, everyone = order(counters, range(8)), (0, 1, 3)
    assert levels.evict(0, everyone, (), 2, demand=False) is None
    assert levels.evict(0, everyone, (), 2, demand=True) == 3
    assert levels.evict(0, everyone, (0,), 2, demand=True) == 1


def test_the_layer_that_computes_is_frozen_and_falls_to_its_counters() -> None:
    counters = predictor()
    levels = order(counters, range(8))
    begin(counters)
    counters.layer_reached(LayerReached(0, 0, (1,), (9,)))
    assert [counters.level(key) for key in range(8)] == [FROZEN] * 4 + [0] * 4
    assert levels.evict(0, range(4), (), 5, demand=False) is None
    assert levels.evict(0, range(6), (), 6, demand=False) == 4
    counters.layer_done(LayerDone(0, 0, ()))
    assert [counters.level(key) for key in range(4)] == [0, 1, 0, 0]
    assert [levels.evict(0, range(4), (), 5, demand=False) for _ in range(4)] == [0, 2, 3, None]


def test_a_prefill_freezes_nothing() -> None:
    counters = predictor()
    levels = order(counters, range(8))
    counters.prefill_begun(PrefillBegun(0, 100))
    counters.layer_reached(LayerReached(0, 0, (0, 1), (90, 10)))
    assert levels.evict(0, range(8), (0, 1), 5, demand=True) == 2


def test_levels_need_counters() -> None:
    with pytest.raises(ValueError, match="goes by a CounterPredictor"):
        Levels().order((0,) * 4, Predictor(), EXPERTS)
