"""Lowest score first, against a model that looks through all candidates."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from spmoe.policy.eviction.heap_order import RankedOrder, Score

KEYS = 12
KEY = st.integers(0, KEYS - 1)


class Marks(RankedOrder):
    """Scores as a test sets them; a score below 0 is kept from prefetches."""

    def __init__(self, pool_of: tuple[int, ...]) -> None:
        super().__init__(pool_of)
        self.marks = [(0, 0)] * len(pool_of)

    def mark(self, key: int, mark: tuple[int, int]) -> None:
        self.marks[key] = mark
        self._note(key)

    def _score(self, key: int) -> Score:
        return self.marks[key]

    def _may_leave(self, victim: int, key: int, demand: bool) -> bool:
        return demand or self.marks[victim] >= (0, 0)

    def entries(self, pool: int) -> int:
        return len(self._heaps[pool])


class AgainstMin(RuleBasedStateMachine):
    @initialize(pools=st.integers(1, 2))
    def begin(self, pools: int) -> None:
        self.pool_of = tuple(key % pools for key in range(KEYS))
        self.order = Marks(self.pool_of)
        self.candidates: set[int] = set()

    @rule(keys=st.lists(KEY, max_size=4))
    def touch(self, keys: list[int]) -> None:
        self.order.touch(iter(keys))
        self.candidates.update(keys)

    @rule(key=KEY)
    def forget(self, key: int) -> None:
        self.order.forget(key)
        self.candidates.discard(key)

    @rule(key=KEY, mark=st.tuples(st.integers(-1, 2), st.integers(0, 1)))
    def mark(self, key: int, mark: tuple[int, int]) -> None:
        self.order.mark(key, mark)

    @rule(pool=st.integers(0, 1), resident=st.sets(KEY), pinned=st.sets(KEY, max_size=3), key=KEY, demand=st.booleans())
    def evict(self, pool: int, resident: set[int], pinned: set[int], key: int, demand: bool) -> None:
        pool %= max(self.pool_of) + 1
        free = [one for one in self.candidates & resident - pinned if self.pool_of[one] == pool]
        expected = min(free, key=lambda one: (self.order.marks[one], one), default=None)
        if expected is not None and not demand and self.order.marks[expected] < (0, 0):
            expected = None
        assert self.order.evict(pool, resident, pinned, key, demand) == expected
        self.candidates.discard(-1 if expected is None else expected)


TestAgainstMin = AgainstMin.TestCase


def test_who_is_passed_over_stays_a_candidate() -> None:
    order = Marks((0,) * 3)
    order.touch([0, 1, 2])
    order.mark(1, (1, 0))
    order.mark(2, (2, 0))
    assert order.evict(0, {1, 2}, {1}, key=0, demand=True) == 2
    assert order.evict(0, {0, 1}, set(), key=2, demand=True) == 0
    assert order.evict(0, {0, 1}, set(), key=2, demand=True) == 1
    assert order.evict(0, {0, 1}, set(), key=2, demand=True) is None


def test_outdated_entries_go() -> None:
    order = Marks((0,) * 3)
    order.touch([0, 1])
    for time in range(1000):
        order.mark(0, (time, 0))
    assert order.entries(0) <= 64 + 4 * 2
    assert order.evict(0, {0, 1}, set(), key=2, demand=True) == 1
