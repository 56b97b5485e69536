"""FineMoE: predictions and evictions by hand, and against a model that computes everything anew."""

from __future__ import annotations

from itertools import accumulate
from math import sqrt
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spmoe.policy.parts.horizon import Unlimited
from spmoe.policy.parts.pace import Pace
from spmoe.policy.parts.predictor import Predictor
from spmoe.policy.parts.scope import Scope
from spmoe.policy.systems.finemoe import PROB, ExpertMap, MapAware, MapPredictor
from spmoe.policy.systems.similarity import ONE
from spmoe.state.events import LayerReached
from spmoe.state.residency import VictimOrder
from tests.policy.caches import bound, wants

Band = Literal["layer", "rest"]
Gate = dict[int, int]
"""Per expert, its probability; only ratios matter."""

# Four layers of four experts.
A: list[Gate] = [{0: 10}, {1: 6, 2: 4}, {0: 5, 1: 3, 2: 2}, {3: 10}]
B: list[Gate] = [{3: 10}, {0: 10}, {2: 10}, {0: 7, 1: 3}]


def learner(
    band: Band = "layer", distance: int = 2, top_k: int = 1, layers: int = 4, capacity: int = 1000
) -> MapPredictor:
    scope = Scope(layers, 4, top_k, 0, Unlimited(), Pace(1, 1, 1, 1, 1))
    predictor = ExpertMap(distance, band, capacity).build(scope, None)
    assert isinstance(predictor, MapPredictor)
    return bound(predictor)


def reach(predictor: MapPredictor, layer: int, *gates: Gate) -> list[int]:
    """What is wanted then and was not before, most wanted first."""
    as_given = tuple(
        tuple((expert, prob * PROB // sum(gate.values())) for expert, prob in gate.items()) for gate in gates
    )
    predictor.clear()
    predictor.layer_reached(LayerReached(0, layer, (), (), as_given))
    return wants(predictor)


def run(predictor: MapPredictor, one: list[Gate]) -> list[list[int]]:
    """An iteration; what is wanted newly, per layer."""
    return [reach(predictor, layer, gate) for layer, gate in enumerate(one)]


def test_the_paper_by_hand() -> None:
    predictor = learner()
    assert run(predictor, A) == [[]] * 4
    # Whatever comes is most like the only map.  It is not alike at all, so layers 1 to 3 have to be there as a whole.
    assert run(predictor, B) == [[5, 6, 8, 9, 10], [15], [], []]
    # Both are known now.  As A, hence the best is enough: 0.6 one layer ahead and 0.5 two layers ahead, then layer 3.
    assert run(predictor, A) == [[5, 8], [15], [], []]
    assert run(predictor, B) == [[4, 10], [12], [], []]


def test_a_lower_similarity_wants_more() -> None:
    predictor = learner()
    run(predictor, A)
    # The cosine is 3/5: 0.4 is reached by 0.6 in layer 1 and by 0.5 in layer 2.
    assert reach(predictor, 0, {0: 3, 1: 4}) == [5, 8]
    # The cosine is 5/13: 0.615 takes 0.6 and 0.4, and 0.5 and 0.3.  Of equals halfway, 0.4 / 1 goes before 0.5 / 2.
    assert reach(predictor, 0, {0: 5, 1: 12}) == [5, 6, 8, 9]


def test_a_sum_equal_to_the_threshold() -> None:
    quarters: Gate = {0: 1, 1: 1, 2: 1, 3: 1}
    for band, expected in (("layer", [4, 5]), ("rest", [4, 5, 8, 9, 6, 7, 10, 11])):
        predictor = learner("rest", 3) if band == "rest" else learner("layer", 1)
        run(predictor, [{0: 1}, quarters, quarters, quarters])
        # The cosine is 1/2.  Two quarters reach 1/2, and they are within it.
        assert reach(predictor, 0, quarters) == expected


def test_at_least_top_k_but_none_that_is_impossible() -> None:
    predictor = learner(top_k=3)
    run(predictor, A)
    assert run(predictor, A) == [[5, 6, 8, 9, 10], [15], [], []]


def test_probabilities_of_a_window_are_added_up() -> None:
    predictor, other = learner(), learner()
    for layer, (one, two) in enumerate(zip(A, B, strict=True)):
        reach(predictor, layer, one, two)
        reach(other, layer, {expert: one.get(expert, 0) + two.get(expert, 0) for expert in range(4)})
    assert predictor.probs.tolist() == other.probs.tolist() == [0] * 16
    assert run(predictor, A) == run(other, A)
    assert predictor.probs.tolist() == other.probs.tolist()
    assert predictor.probs[4:8].tolist() == [PROB * 5 // 10, PROB * 3 // 10, PROB * 2 // 10, 0]


def test_the_released_band_by_hand() -> None:
    predictor = learner("rest", distance=1, layers=5)
    one: list[Gate] = [{0: 10}, {1: 10}, {2: 10}, {0: 5, 1: 5}, {2: 56, 3: 44}]
    assert run(predictor, one) == [[]] * 5
    # Layer 1 speaks for 3 and 4: 0.5 * 6 > 0.56 * 5.  All others follow.
    assert run(predictor, one)[1:] == [[12, 18, 13, 14, 15, 16, 17, 19], [18, 16, 17, 19], [], []]
    # With 0.62 * 5 it is the other way round.
    predictor = learner("rest", distance=1, layers=5)
    one[4] = {2: 62, 3: 38}
    run(predictor, one)
    assert run(predictor, one)[1] == [18, 12, 13, 14, 15, 16, 17, 19]


def test_the_released_selection_stays_within_the_threshold() -> None:
    predictor = learner("rest", distance=4)
    run(predictor, A)
    # The cosine is 5/13: within 0.615 are 0.6 and 0.5; layer 3's only one is not, but the best one always goes first.
    # The band begins at layer 0, with factor 5: 0.6 * 4 > 1 * 2 > 0.5 * 3.
    assert reach(predictor, 0, {0: 5, 1: 12}) == [5, 15, 8, 4, 6, 7, 9, 10, 11, 12, 13, 14]
    # Nothing alike: all of the band is selected.
    assert reach(predictor, 0, {1: 1})[:7] == [5, 15, 6, 8, 9, 10, 4]


def test_layer_d_is_never_covered_as_released() -> None:
    predictor = learner("rest", distance=2)
    run(predictor, A)
    # The first row speaks for layer 1, in place of the embedding, and then for layer 3.
    assert run(predictor, A) == [[5, 4, 6, 7, 15, 12, 13, 14], [], [], []]
    assert predictor.probs.reshape(4, 4).any(axis=1).tolist() == [False, True, False, True]
    assert predictor.probs[4:8].tolist() == [0, PROB * 6 // 10, PROB * 4 // 10, 0]


def test_a_distance_beyond_the_last_layer() -> None:
    predictor = learner(distance=9)
    run(predictor, A)
    assert run(predictor, A) == [[5, 15, 8], [], [], []]  # 1 / 3 > 0.5 / 2.
    with pytest.raises(ValueError, match="at least one layer ahead"):
        ExpertMap(distance=0)


def test_a_full_store_replaces_the_most_similar() -> None:
    # Half the weight is the first row's.  C's is A's, its other rows are B's.
    c = [A[0], *B[1:]]
    predictor = learner(capacity=2)
    for one in (A, B, c):
        run(predictor, one)
    # Cosines with A: 1 and about 0.37; with B: 0 and about 0.72.  So A has gone.
    assert run(predictor, A)[0] == [4, 10]
    # With less weight on the first row, B has gone.
    predictor = learner(capacity=2, distance=1)
    for one in (A, B, c):
        run(predictor, one)
    assert reach(predictor, 0, B[0]) == [5, 6]


def order(predictor: MapPredictor, truncated: bool = False) -> VictimOrder:
    return MapAware(truncated).order((0,) * 16, predictor, 4)


def drain(victims: VictimOrder, here: list[int]) -> list[int | None]:
    return [victims.evict(0, here, (), 0, demand=True) for _ in here]


@pytest.mark.parametrize(("truncated", "expected"), [(False, [7, 6, 5, 8]), (True, [5, 6, 7, 8])])
def test_evictions_by_hand(truncated: bool, expected: list[int]) -> None:
    predictor = learner()
    run(predictor, A)
    run(predictor, A)
    victims = order(predictor, truncated)
    # Probabilities 0.6, 0.4, 0 and 0.5; visits 1, 1, 3 and 3: 0.6, 0.4, 0 and 1.5, or cut to integers 0, 0, 0 and 1.
    victims.touch([5, 6, 7, 8])
    victims.touch([7, 8])
    victims.touch([7, 8])
    assert predictor.wished.sum() == 0  # All layers have been reached.
    assert drain(victims, [5, 6, 7, 8]) == expected
    # Who comes back has no visits and, until the next search, no probability.
    victims.touch([5, 8, 9])
    assert drain(victims, [5, 8, 9]) == [5, 8, 9]
    assert predictor.probs[[5, 6, 7, 8]].tolist() == [0] * 4
    run(predictor, A)
    victims.touch([8, 5, 6, 6])
    # 0.5, 0.6 and twice 0.4: what was there before does not count.
    assert drain(victims, [5, 6, 8]) == ([5, 6, 8] if truncated else [8, 5, 6])


@pytest.mark.parametrize(("truncated", "expected"), [(False, [2, 1, 0]), (True, [0, 1, 2])])
def test_visits_decide_among_the_unlikely(truncated: bool, expected: list[int]) -> None:
    victims = order(learner(), truncated)
    victims.touch([0, 1, 2, 0, 1, 0])
    assert drain(victims, [0, 1, 2]) == expected


def test_what_is_wanted_stays_until_its_layer_is_reached() -> None:
    predictor = learner()
    run(predictor, A)
    victims = order(predictor)
    assert reach(predictor, 0, A[0]) == [5, 8]
    victims.touch([5, 8])
    assert victims.evict(0, {5, 8}, (), 15, demand=False) is None
    assert victims.evict(0, {5, 8}, {8}, 15, demand=True) == 5  # Nothing else can go.
    victims.touch([5, 1])
    assert victims.evict(0, {1, 5, 8}, (), 15, demand=True) == 1
    assert reach(predictor, 1, A[1]) == [15]
    # Layer 1 has been reached, layer 2 has not.
    assert victims.evict(0, {5, 8}, (), 15, demand=False) == 5
    assert victims.evict(0, {8}, (), 15, demand=False) is None


def test_a_released_search_takes_back_earlier_wishes() -> None:
    predictor = learner("rest", distance=1, layers=5)
    one = [*A, {1: 1}]
    run(predictor, one)
    for layer in (0, 1):
        reach(predictor, layer, one[layer])
    assert predictor.wished.nonzero()[0].tolist() == list(range(12, 20))
    reach(predictor, 2, one[2])
    assert predictor.wished.nonzero()[0].tolist() == list(range(16, 20))
    reach(predictor, 3, one[3])  # Speaks for layers behind the last.
    assert predictor.wished.nonzero()[0].tolist() == list(range(16, 20))


def test_evictions_leave_the_pinned_the_absent_and_other_pools_alone() -> None:
    victims = MapAware().order((0,) * 8 + (1,) * 8, learner(), 4)
    victims.touch([0, 1, 2, 8, 9])
    assert victims.evict(1, {8, 9}, {8}, 10, demand=False) == 9
    victims.forget(0)
    assert victims.evict(0, {0, 2}, (), 3, demand=False) == 2
    assert victims.evict(0, {0, 1}, {1}, 3, demand=True) is None


def test_needs_the_right_predictor() -> None:
    with pytest.raises(ValueError, match="goes by a MapPredictor"):
        MapAware().order((0,) * 16, Predictor(), 4)


class Model:
    """The predictor, computed anew from all maps."""

    def __init__(self, band: Band, distance: int, top_k: int, capacity: int) -> None:
        self.band, self.distance, self.top_k, self.capacity = band, distance, top_k, capacity
        self.maps: list[list[list[int]]] = []

    def run(self, one: list[Gate]) -> list[list[int]]:
        rows = []
        for gate in one:
            probs = [gate.get(expert, 0) * PROB // max(sum(gate.values()), 1) for expert in range(4)]
            rows.append([prob * PROB // max(sum(probs), 1) for prob in probs])
        wishes = [self.search(rows, layer) if self.maps else [] for layer in range(4)]
        if len(self.maps) < self.capacity:
            self.maps.append(rows)
        else:
            alike = [
                self.distance * cosine(rows[:1], other[:1]) + (4 - self.distance) * cosine(rows, other)
                for other in self.maps
            ]
            self.maps[alike.index(max(alike))] = rows
        return wishes

    def search(self, rows: list[list[int]], layer: int) -> list[int]:
        alike = [cosine(rows[: layer + 1], other[: layer + 1]) for other in self.maps]
        best = self.maps[alike.index(max(alike))]
        threshold = max(ONE - max(alike), 0) * PROB / ONE
        if self.band == "layer":
            first, end = 1 if layer == 0 else layer + self.distance, min(layer + self.distance + 1, 4)
            return self.found(best, layer, first, end, threshold)
        later = self.found(best, layer, layer + self.distance + 1, 4, threshold)
        return self.found(best, layer, 0, self.distance, threshold) + later if layer == 0 else later

    def found(self, best: list[list[int]], layer: int, first: int, end: int, threshold: float) -> list[int]:
        found = []
        for target in range(max(first, layer + 1), end):
            ranked = sorted(range(4), key=lambda expert, row=best[target]: (-row[expert], expert))
            sums = list(accumulate(best[target][expert] for expert in ranked))
            for rank, expert in enumerate(ranked):
                prob = best[target][expert]
                if self.band == "rest":
                    chosen = rank < self.top_k or sums[rank] <= threshold
                    found.append((-prob * chosen * (end + 1 - (target - first)), target * 4 + expert))
                elif prob and (rank < self.top_k or sums[rank - 1] < threshold):
                    found.append((-(prob * PROB // (target - layer)), -prob, target * 4 + expert))
        return [entry[-1] for entry in sorted(found)]


def cosine(one: list[list[int]], other: list[list[int]]) -> int:
    """By the same float operations."""
    pairs = [pair for rows in zip(one, other, strict=True) for pair in zip(*rows, strict=True)]
    square, other_square = (sum(pair[which] ** 2 for pair in pairs) for which in (0, 1))
    return int(sum(a * b for a, b in pairs) / (sqrt(max(other_square, 1)) * sqrt(max(square, 1))) * ONE)


GATES = st.dictionaries(st.integers(0, 3), st.integers(1, 9), max_size=4)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["layer", "rest"]),
    st.integers(1, 4),
    st.integers(1, 2),
    st.lists(st.lists(GATES, min_size=4, max_size=4), min_size=2, max_size=6),
)
def test_agrees_with_a_model_that_computes_everything_anew(
    band: Band, distance: int, top_k: int, history: list[list[Gate]]
) -> None:
    predictor = learner(band, distance, top_k, capacity=2)
    model = Model(band, distance, top_k, capacity=2)
    for one in history:
        assert run(predictor, one) == model.run(one)
