"""What is wanted: the earliest deadline first; wanted again, weights add up; residents are not wanted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spmoe.policy.parts.wanted import WantedSet
from spmoe.state.events import LayerReached
from tests.policy.caches import FakeCache, bound, entries, wants


def test_earliest_deadline_then_weight_then_key() -> None:
    one = bound(WantedSet(8))
    for key, deadline, weight in [(4, 20, 9), (3, 10, 1), (2, 10, 5), (1, 10, 1)]:
        one.want(key, deadline, weight)
    assert wants(one) == [2, 1, 3, 4]
    assert list(one.next(1)) == [2] and list(one.next(3)) == [2, 1, 3]


def test_wants_of_one_key_add_up_and_the_earlier_deadline_holds() -> None:
    one = bound(WantedSet(8))
    one.want(1, 10, 3)
    one.want(2, 10, 4)
    one.want(1, 30, 2)
    assert entries(one) == [(1, 10, 5), (2, 10, 4)]
    one.want(2, 5, 0)
    assert entries(one) == [(2, 5, 4), (1, 10, 5)]
    assert list(one.next(1)) == [2]


def test_only_the_absent_are_wanted() -> None:
    one, cache = WantedSet(8), FakeCache()
    one.bind(cache)
    cache.resident, cache.in_flight = {1: 0, 5: 1}, {2: 2}
    assert one.want_absent([(5, 1, 1), (2, 1, 1), (3, 1, 1), (1, 1, 1)]) == [5, 1]
    assert wants(one) == [3] and cache.touched == []


def test_what_is_wanted_for_a_layer_that_is_reached_comes_too_late() -> None:
    one = bound(WantedSet(4))
    for key in (3, 4, 7, 8):
        one.want(key, 0, 0)
    one.layer_reached(LayerReached(0, 1, (), ()))
    assert wants(one) == [3, 8]


@given(
    st.lists(
        st.tuples(st.integers(0, 11), st.integers(0, 5), st.integers(0, 3), st.sampled_from("wwwxd")), max_size=300
    ),
    st.integers(1, 4),
)
def test_does_what_a_plain_dictionary_says(actions: list[tuple[int, int, int, str]], count: int) -> None:
    one = bound(WantedSet(4))
    plain: dict[int, tuple[int, int, int]] = {}
    for key, deadline, weight, action in actions:
        if action == "w":
            one.want(key, deadline, weight)
            known = plain.get(key, (deadline, 0, key))
            plain[key] = (min(known[0], deadline), known[1] - weight, key)
        elif action == "x":
            one.drop_layer(key // 4)
            plain = {other: entry for other, entry in plain.items() if other // 4 != key // 4}
        elif key in plain:
            one.discard(key)
            del plain[key]
        assert one.wanted == plain
        assert list(one.next(count)) == [key for _, _, key in sorted(plain.values())][:count]
