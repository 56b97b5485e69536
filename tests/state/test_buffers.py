"""Prefetch buffers of the slot table: what waits there, who is overwritten, and how a used expert joins its pool."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from spmoe.policy.eviction.lru import LruOrder
from spmoe.policy.parts.placement import LayerPools
from spmoe.state.commands import Load
from spmoe.state.keys import Shape
from spmoe.state.residency import Pool, Residency

EXPERTS = 5


def residency(slots: int, buffers: int, layers: int = 1) -> Residency:
    """The slots come first, split among the layers, then the buffers."""
    placement, shape = LayerPools(buffers), Shape(layers, EXPERTS, 1)
    pool_of = placement.pool_of(shape)
    return Residency(
        placement.pools(shape, slots + buffers), pool_of, LruOrder(pool_of), Pool(first=slots, slots=buffers)
    )


def prefetch(table: Residency, key: int) -> Load | None:
    loaded = table.claim(key, demand=False)
    if loaded is not None:
        table.arrive(key)
    return loaded


def use(table: Residency, *keys: int) -> None:
    """A layer that needs `keys` is reached and done; what is absent is loaded on demand."""
    table.pinned.update(keys)
    table.adopt(keys)
    table.touch(keys)
    for key in keys:
        if key not in table.resident:
            assert table.claim(key, demand=True) is not None
            table.arrive(key)
    table.pinned.clear()


def test_prefetches_take_buffers_and_demands_take_slots() -> None:
    table = residency(slots=2, buffers=2)
    assert prefetch(table, 4) == Load(4, 2, None)
    table.touch([0])
    assert table.claim(0, demand=True) == Load(0, 0, None)
    assert prefetch(table, 3) == Load(3, 3, None)


def test_the_oldest_buffer_is_overwritten_even_while_slots_are_free() -> None:
    table = residency(slots=3, buffers=2)
    prefetch(table, 0)
    prefetch(table, 1)
    table.touch([0])  # Being wanted again does not make it younger.
    assert prefetch(table, 2) == Load(2, 3, 0)
    assert prefetch(table, 3) == Load(3, 4, 1)
    assert set(table.resident) == {2, 3}


def test_what_is_used_joins_a_pool_with_room_and_leaves_its_buffer_to_the_next() -> None:
    table = residency(slots=2, buffers=1)
    prefetch(table, 4)
    use(table, 4)
    # 4 stays where it is, in slot 2; the pool's slot 0 is a buffer now.
    assert table.resident == {4: 2}
    assert prefetch(table, 3) == Load(3, 0, None)
    table.touch([1])
    assert table.claim(1, demand=True) == Load(1, 1, None)
    table.arrive(1)
    # The pool is full with 4, used before 1.
    assert table.claim(0, demand=True) == Load(0, 2, 4)


def test_what_is_used_changes_places_with_the_victim_which_is_overwritten_first() -> None:
    table = residency(slots=2, buffers=2)
    use(table, 0)
    use(table, 1)
    prefetch(table, 2)
    prefetch(table, 3)
    use(table, 3)
    # 0 was used longest ago; it is still there, in what is a buffer now, ahead of 2, which is older there.
    assert table.resident == {0: 0, 1: 1, 2: 2, 3: 3}
    assert prefetch(table, 4) == Load(4, 0, 0)
    # 1 and 3 are the pool's.
    table.touch([0])
    assert table.claim(0, demand=True) == Load(0, 1, 1)


def test_a_victim_that_is_needed_again_comes_back() -> None:
    table = residency(slots=1, buffers=1)
    use(table, 0)
    prefetch(table, 1)
    use(table, 1)
    use(table, 0)
    assert table.resident == {0: 0, 1: 1}
    assert prefetch(table, 2) == Load(2, 1, 1)


def test_what_is_on_its_way_can_join_and_is_never_overwritten() -> None:
    table = residency(slots=1, buffers=1)
    assert table.claim(0, demand=False) == Load(0, 1, None)
    assert table.claim(1, demand=False) is None
    table.pinned.add(0)
    table.adopt([0])
    table.touch([0])
    # 0 will arrive in the pool; the pool's slot is a buffer.
    assert table.claim(1, demand=False) == Load(1, 0, None)
    assert table.claim(2, demand=True) is None
    table.arrive(0)
    table.pinned.clear()
    assert table.claim(2, demand=True) == Load(2, 1, 0)


def test_what_is_needed_computes_from_its_buffer_where_the_pool_is_needed_too() -> None:
    table = residency(slots=1, buffers=2)
    use(table, 0)
    prefetch(table, 1)
    prefetch(table, 2)
    table.pinned.update([0, 1])
    table.adopt([1, 0])
    table.touch([1, 0])
    # Nobody can make room for 1, so it stays; while it is needed 2 is overwritten before it.
    assert table.claim(3, demand=False) == Load(3, 2, 2)
    assert table.claim(4, demand=False) is None
    table.pinned.clear()
    # 1 was touched before 0, but it is none of the pool's.
    table.touch([4])
    assert table.claim(4, demand=True) == Load(4, 0, 0)
    assert table.claim(2, demand=False) == Load(2, 1, 1)


def test_a_layer_takes_slots_of_its_own_pool_only() -> None:
    table = residency(slots=2, buffers=1, layers=2)
    use(table, 0)
    use(table, EXPERTS)
    prefetch(table, EXPERTS + 1)
    use(table, EXPERTS + 1)
    assert prefetch(table, 2) == Load(2, 1, EXPERTS)
    assert set(table.resident) == {0, EXPERTS + 1, 2}


class Buffers(RuleBasedStateMachine):
    """Layers that are reached, waited for and done, with prefetches in between, against lists of keys.

    `slot_of` knows who is there (`there`) or on its way.  `recency` has the keys of all pools, least recently used
    first; `waiting` those in buffers, the first to be overwritten first.
    """

    @initialize(layers=st.integers(1, 3), more=st.integers(0, 4), buffers=st.integers(1, 4))
    def begin(self, layers: int, more: int, buffers: int) -> None:
        slots = layers + more
        self.layers, self.buffers = layers, buffers
        self.sizes = [slots // layers + (layer < slots % layers) for layer in range(layers)]
        self.table = residency(slots, buffers, layers)
        self.slot_of: dict[int, int] = {}
        self.there: set[int] = set()
        self.pinned: set[int] = set()
        self.recency: list[int] = []
        self.waiting: list[int] = []
        self.wanted: list[int] = []
        self.open = False

    def pool(self, layer: int) -> list[int]:
        """Whose slots are the layer's."""
        return [key for key in self.slot_of if key // EXPERTS == layer and key not in self.waiting]

    def victim(self, candidates: Sequence[int]) -> int | None:
        return next((key for key in candidates if key in self.there and key not in self.pinned), None)

    def take(self, load: Load | None, key: int, free: bool, victim: int | None) -> bool:
        """Check a claim: a slot that nobody has where one is `free`, else the victim's, else none."""
        if not free and victim is None:
            assert load is None
            return False
        assert load is not None and load.key == key
        if free:
            assert load.evicted is None and load.slot not in self.slot_of.values()
        else:
            assert victim is not None and load == Load(key, self.slot_of.pop(victim), victim)
            self.there.remove(victim)
        self.slot_of[key] = load.slot
        return True

    @precondition(lambda self: not self.open)
    @rule(data=st.data())
    def reach(self, data: st.DataObject) -> None:
        layer = data.draw(st.integers(0, self.layers - 1))
        experts = data.draw(st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=4, unique=True))
        needs = [layer * EXPERTS + expert for expert in experts]
        # Residents first, as the scheduler has it.
        needs.sort(key=lambda key: key not in self.there)
        self.open = True
        self.pinned = set(needs)
        self.table.pinned.update(needs)
        self.table.adopt(needs)
        self.table.touch(needs)
        for key in needs:
            if key in self.waiting:
                if len(self.pool(layer)) < self.sizes[layer]:
                    self.waiting.remove(key)
                    continue
                leaves = self.victim([other for other in self.recency if other // EXPERTS == layer])
                if leaves is not None:
                    self.recency.remove(leaves)
                    self.waiting.remove(key)
                    self.waiting.insert(0, leaves)
        for key in needs:
            if key not in self.waiting:
                self.recency = [other for other in self.recency if other != key] + [key]
        self.wanted = [key for key in needs if key not in self.slot_of]

    @precondition(lambda self: self.wanted)
    @rule()
    def demand(self) -> None:
        key = self.wanted[0]
        layer = key // EXPERTS
        free = len(self.pool(layer)) < self.sizes[layer]
        leaves = None if free else self.victim([other for other in self.recency if other // EXPERTS == layer])
        if self.take(self.table.claim(key, demand=True), key, free, leaves):
            del self.wanted[0]
            if leaves is not None:
                self.recency.remove(leaves)

    @rule(data=st.data())
    def prefetch(self, data: st.DataObject) -> None:
        absent = sorted(set(range(self.layers * EXPERTS)) - self.slot_of.keys() - set(self.wanted))
        if not absent:
            return
        key = data.draw(st.sampled_from(absent))
        free = len(self.waiting) < self.buffers
        leaves = None if free else self.victim(self.waiting)
        if self.take(self.table.claim(key, demand=False), key, free, leaves):
            if leaves is not None:
                self.waiting.remove(leaves)
            self.waiting.append(key)

    @precondition(lambda self: self.slot_of.keys() - self.there)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.slot_of.keys() - self.there)))
        self.table.arrive(key)
        self.there.add(key)

    @precondition(lambda self: self.pinned & self.there)
    @rule(data=st.data())
    def computed(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.pinned & self.there)))
        self.pinned.remove(key)
        self.table.pinned.remove(key)

    @precondition(lambda self: self.open and not self.wanted and self.pinned <= self.there)
    @rule()
    def done(self) -> None:
        self.open = False
        self.pinned.clear()
        self.table.pinned.clear()

    @invariant()
    def every_slot_has_one_owner(self) -> None:
        if not hasattr(self, "table"):
            return
        table = self.table
        assert table.resident | table.in_flight == self.slot_of
        assert table.resident.keys() == self.there
        assert len(set(self.slot_of.values())) == len(self.slot_of)
        assert set(self.slot_of.values()) <= set(range(sum(self.sizes) + self.buffers))
        assert len(self.waiting) <= self.buffers
        assert all(len(self.pool(layer)) <= size for layer, size in enumerate(self.sizes))


TestBuffers = Buffers.TestCase
TestBuffers.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
