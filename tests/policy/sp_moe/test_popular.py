"""What was used most so far is wanted, one layer ahead."""

from __future__ import annotations

from spmoe.policy.parts.horizon import NextLayer
from spmoe.policy.parts.pace import Pace
from spmoe.policy.parts.scope import Scope
from spmoe.policy.parts.wanted import Want, WantedSet
from spmoe.policy.sp_moe.popular import Popular
from spmoe.state.events import LayerReached
from tests.policy.caches import bound, entries

EXPERTS = 4
PACE = Pace(load_bytes=1, latency_ns=1, transfer_ns=1, draft_ns=1, layer_ns=70)


def popular(top_n: int | None = None, layers: int = 3) -> WantedSet:
    predictor = Popular(top_n).build(Scope(layers, EXPERTS, 2, 0, NextLayer(), PACE), None)
    assert isinstance(predictor, WantedSet)
    return bound(predictor)


def reach(one: WantedSet, layer: int, tokens: dict[int, int], time: int = 0) -> list[Want]:
    """What is wanted as a layer is reached that sends so many tokens to its experts."""
    one.clear()
    one.layer_reached(LayerReached(time, layer, tuple(tokens), tuple(tokens.values())))
    return entries(one)


def test_the_most_used_of_the_next_layer_are_due_when_it_is_reached() -> None:
    one = popular()
    assert reach(one, 0, {0: 5, 1: 5}) == []  # Nothing is known of layer 1.
    assert reach(one, 1, {3: 1, 0: 2, 2: 4}) == []
    assert reach(one, 2, {1: 9}) == []
    # Layer 1 had 2, 0 and 3, by tokens; the model's top-k is 2.
    assert reach(one, 0, {0: 1}, time=1000) == [(EXPERTS + 2, 1070, 4), (EXPERTS, 1070, 2)]
    assert reach(one, 1, {3: 1}, time=2000) == [(2 * EXPERTS + 1, 2070, 9)]
    assert reach(one, 2, {1: 1}, time=3000) == []  # No layer comes after the last.


def test_tokens_add_up_and_ties_go_by_id() -> None:
    one = popular(top_n=1)
    reach(one, 1, {3: 2, 1: 3})
    assert reach(one, 0, {0: 1}) == [(EXPERTS + 1, 70, 3)]
    reach(one, 1, {3: 1})
    assert reach(one, 0, {0: 1}) == [(EXPERTS + 1, 70, 3)]
    reach(one, 1, {3: 1})
    assert reach(one, 0, {0: 1}) == [(EXPERTS + 3, 70, 4)]


def test_what_was_never_used_is_never_wanted() -> None:
    one = popular(top_n=EXPERTS)
    reach(one, 1, {2: 1})
    assert reach(one, 0, {0: 1, 1: 1, 2: 1, 3: 1}) == [(EXPERTS + 2, 70, 1)]


def test_layers_without_routing_count_nothing() -> None:
    one = popular()
    reach(one, 1, {})
    assert reach(one, 0, {}) == []
