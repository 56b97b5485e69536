"""MoE-Infinity: predictions and evictions by hand, and against a model that computes everything anew."""

from __future__ import annotations

from collections import Counter
from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spmoe.policy.parts.horizon import Unlimited
from spmoe.policy.parts.pace import Pace
from spmoe.policy.parts.predictor import Predictor
from spmoe.policy.parts.scope import Scope
from spmoe.policy.systems.moe_infinity import ActivationAware, ActivationMatrix, ActivationPredictor
from spmoe.policy.systems.similarity import ONE
from spmoe.state.events import LayerReached, RequestBegun
from spmoe.state.residency import VictimOrder
from tests.policy.caches import bound, wants

Layers = list[dict[int, int]]
"""One pass: per layer, the tokens of each expert."""

# Three layers of four experts.
A: Layers = [{0: 2}, {1: 3, 2: 1}, {3: 2, 0: 2}]
B: Layers = [{3: 2}, {0: 4}, {1: 1}]


def learner(capacity: int = 1000) -> ActivationPredictor:
    scope = Scope(3, 4, 2, 0, Unlimited(), Pace(1, 1, 1, 1, 1))
    predictor = ActivationMatrix(capacity).build(scope, None)
    assert isinstance(predictor, ActivationPredictor)
    return bound(predictor)


def reach(predictor: ActivationPredictor, layer: int, tokens: dict[int, int]) -> list[int]:
    """What is wanted then and was not before, most wanted first."""
    predictor.clear()
    predictor.layer_reached(LayerReached(0, layer, tuple(tokens), tuple(tokens.values())))
    return wants(predictor)


def run(predictor: ActivationPredictor, *passes: Layers) -> list[list[int]]:
    """A request; what is wanted newly, per layer."""
    predictor.request_begun(RequestBegun(0, 0))
    return [reach(predictor, layer, tokens) for one in passes for layer, tokens in enumerate(one)]


def test_a_prediction_takes_the_place_of_the_one_before() -> None:
    predictor = learner()
    run(predictor, A)
    run(predictor, B)
    predictor.want(7, 0, 0)
    predictor.layer_reached(LayerReached(0, 0, (0,), (2,)))
    assert 7 not in predictor.wanted and wants(predictor) == [5, 8, 11, 6]


def test_nothing_is_wanted_before_a_request_has_finished() -> None:
    assert run(learner(), A, A) == [[]] * 6


def test_the_most_similar_request_tells_by_hand() -> None:
    predictor = learner()
    run(predictor, A)
    run(predictor, B)
    # As A.  Of four: three times 3/4 and 1/4 for layer 1, twice 1/2 and 1/2 for layer 2.
    assert run(predictor, A) == [[5, 8, 11, 6], [8, 11], []]
    assert run(predictor, B) == [[4, 9], [9], []]
    # Layer 0 is A's, layer 1 is B's: both are as similar, and A is older.
    assert run(predictor, [{0: 1}, {0: 1}, {}]) == [[5, 8, 11, 6], [8, 11], []]


def test_a_request_is_matched_by_all_that_it_has_counted() -> None:
    predictor = learner()
    run(predictor, A)
    run(predictor, B)
    # Rows 1 and 2 of the first pass still speak for A, until layer 1 has had 4 tokens for expert 0.
    assert run(predictor, A, B)[3:] == [[5, 8, 11, 6], [8, 11], []]


def test_a_prompt_counts_like_steps() -> None:
    # What the rows hold matters, not in how many passes they came.
    whole, split = learner(), learner()
    run(whole, [{0: 2, 1: 2}, {1: 4}, {3: 4}])
    run(split, [{0: 2}, {1: 4}, {3: 1}], [{1: 2}, {}, {3: 3}])
    assert run(whole, A) == run(split, A)


def test_a_full_store_replaces_the_most_similar() -> None:
    predictor = learner(capacity=2)
    run(predictor, A)
    run(predictor, B)
    like_a = [{0: 2}, {1: 4}, {2: 1}]
    run(predictor, like_a)
    assert run(predictor, A)[0] == [5, 10]
    assert run(predictor, B)[0] == [4, 9]


def order(predictor: ActivationPredictor) -> VictimOrder:
    return ActivationAware().order((0,) * 12, predictor, 4)


def test_evictions_by_hand() -> None:
    predictor = learner()
    victims = order(predictor)
    run(predictor, A)
    predictor.request_begun(RequestBegun(0, 1))
    reach(predictor, 0, {0: 1})
    # A's shares, times 3, 2 or 1: 1 * 3 for key 0; 3/4 * 2 for 5; 1/4 * 2 for 6; 1/2 * 1 for 8 and 11; e for others.
    here = [0, 5, 6, 8, 11, 1, 4, 10]
    victims.touch(here)
    left = []
    for _ in here:
        victim = victims.evict(0, here, (), 0, demand=True)
        assert victim is not None
        left.append(victim)
    assert left == [10, 4, 1, 8, 11, 6, 5, 0]
    assert victims.evict(0, here, (), 0, demand=True) is None


def test_a_prefetch_displaces_only_what_is_worth_less() -> None:
    predictor = learner()
    victims = order(predictor)
    run(predictor, A)
    predictor.request_begun(RequestBegun(0, 1))
    reach(predictor, 0, {0: 1})
    here = [5, 8]
    victims.touch(here)
    assert victims.evict(0, here, (), 11, demand=False) is None  # Worth as much as 8.
    assert victims.evict(0, here, (), 6, demand=False) == 8
    assert victims.evict(0, here, (), 6, demand=False) is None  # 8 is forgotten, 5 is worth more.
    assert victims.evict(0, here, (), 6, demand=True) == 5


def test_evictions_leave_the_pinned_the_absent_and_other_pools_alone() -> None:
    predictor = learner()
    victims = ActivationAware().order((0,) * 4 + (1,) * 8, predictor, 4)
    victims.touch([0, 1, 2, 8, 9])
    assert victims.evict(1, {8, 9}, {8}, 4, demand=True) == 9
    assert victims.evict(0, {1, 2}, {1}, 3, demand=True) == 2
    victims.forget(1)
    assert victims.evict(0, {0, 1}, {0}, 3, demand=True) is None
    assert victims.evict(0, {0, 1}, (), 3, demand=True) == 0


def test_the_first_request_is_its_own_guide() -> None:
    predictor = learner()
    victims = order(predictor)
    victims.touch([0, 4, 8])
    assert [victims.evict(0, [0, 4, 8], (), 0, demand=True) for _ in range(3)] == [8, 4, 0]  # Nothing known yet.
    run(predictor, [{0: 3, 1: 1}, {2: 1}, {3: 1}])
    here = [0, 1, 2, 6, 11]
    victims.touch(here)
    # 3/4 * 3, 1/4 * 3, e * 3, 1 * 2 and 1 * 1.
    assert [victims.evict(0, here, (), 0, demand=True) for _ in here] == [2, 1, 11, 6, 0]


def test_needs_the_right_predictor() -> None:
    with pytest.raises(ValueError, match="goes by a ActivationPredictor"):
        ActivationAware().order((0,) * 12, Predictor(), 4)


class Model:
    """The predictor, computed anew from all that has happened."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.finished: list[list[Counter[int]]] = []
        self.counts: list[Counter[int]] = [Counter() for _ in range(3)]
        self.seen: set[int] = set()

    def begin(self) -> None:
        if any(self.counts):
            entry = self.counts
            if len(self.finished) < self.capacity:
                self.finished.append(entry)
            else:
                alike = [flat(entry, other, range(3)) for other in self.finished]
                self.finished[alike.index(max(alike))] = entry
        self.counts, self.seen = [Counter() for _ in range(3)], set()

    def reach(self, layer: int, tokens: dict[int, int]) -> list[int]:
        self.counts[layer].update(tokens)
        self.seen.add(layer)
        if not self.finished:
            return []
        alike = [sum(flat(self.counts, entry, [row]) for row in sorted(self.seen)) for entry in self.finished]
        entry = self.finished[alike.index(max(alike))]
        wanted = []
        for later in range(layer + 1, 3):
            total = sum(entry[later].values())
            for expert, count in entry[later].items():
                wanted.append((-(count * 2**32 // total) * (4 - later + layer), later * 4 + expert))
        return [key for _, key in sorted(wanted)]


def flat(one: list[Counter[int]], other: list[Counter[int]], rows: object) -> int:
    """The cosine of these rows, by the same float operations."""
    dot = square = entry_square = 0
    for row in rows:  # type: ignore[attr-defined]
        dot += sum(count * other[row][expert] for expert, count in one[row].items())
        square += sum(count**2 for count in one[row].values())
        entry_square += sum(count**2 for count in other[row].values())
    return int(dot / (sqrt(max(entry_square, 1)) * sqrt(max(square, 1))) * ONE)


PASSES = st.lists(st.dictionaries(st.integers(0, 3), st.integers(1, 5), max_size=4), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(PASSES, max_size=3), min_size=2, max_size=6))
def test_agrees_with_a_model_that_computes_everything_anew(history: list[list[Layers]]) -> None:
    predictor, model = learner(capacity=2), Model(capacity=2)
    for passes in history:
        model.begin()
        expected = [model.reach(layer, tokens) for one in passes for layer, tokens in enumerate(one)]
        assert run(predictor, *passes) == expected
