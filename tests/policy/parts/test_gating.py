"""AdapMoE's gating: thresholds from the published ends, and who is dropped."""

from __future__ import annotations

from fractions import Fraction
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spmoe.policy.parts.gating import SensitivityGate

GATE = SensitivityGate()


def test_the_ends_are_those_of_the_released_table() -> None:
    assert GATE.threshold(0, 32) == round(0.0103 * 65536) == 675
    assert GATE.threshold(31, 32) == round(0.467 * 65536) == 30605
    assert GATE.threshold(0, 32) / 65536 == pytest.approx(sqrt(0.005 / 46.7), rel=5e-3)
    assert GATE.threshold(31, 32) / 65536 == pytest.approx(sqrt(0.005 / 0.023), rel=5e-3)
    assert GATE.threshold(0, 1) == 675


def test_between_them_thresholds_grow_by_a_factor() -> None:
    gate = SensitivityGate(first=100, last=10_000)
    assert [gate.threshold(layer, 3) for layer in range(3)] == [100, 1000, 10_000]
    assert [gate.threshold(layer, 5) for layer in range(5)] == [100, 316, 1000, 3162, 10_000]


@given(st.integers(1, 65536), st.integers(1, 65536), st.integers(2, 50))
def test_thresholds_are_the_geometric_mean_rounded_down(one: int, other: int, layers: int) -> None:
    first, last = sorted((one, other))
    gate, steps = SensitivityGate(first, last), layers - 1
    thresholds = [gate.threshold(layer, layers) for layer in range(layers)]
    assert thresholds[-1] == last
    for layer, threshold in enumerate(thresholds):
        mean = Fraction(first) ** (steps - layer) * Fraction(last) ** layer
        assert threshold**steps <= mean < (threshold + 1) ** steps


def test_the_last_expert_goes_where_it_weighs_less_than_the_threshold() -> None:
    gate = SensitivityGate(first=16384, last=16384)  # A quarter.
    assert gate.keeps(0, 2, (3, 1)) == 2
    assert gate.keeps(0, 2, (30, 9)) == 1
    assert gate.keeps(0, 2, (30, 11)) == 2
    assert gate.keeps(0, 2, (30000, 10001)) == gate.keeps(0, 2, (49149, 16385)) == 2


def test_a_weight_counts_less_in_deeper_layers() -> None:
    weights = (50000, 15536)  # 0.237, which lies between the thresholds of layers 25 and 26.
    assert [GATE.keeps(layer, 32, weights) for layer in (0, 25, 26, 31)] == [2, 2, 1, 1]


def test_never_more_than_one_is_dropped_and_never_the_only_one() -> None:
    gate = SensitivityGate(first=65536, last=65536)
    assert gate.keeps(0, 1, (40000, 20000, 1, 1)) == 3
    assert gate.keeps(0, 1, (65536,)) == 1
    assert gate.keeps(0, 1, ()) == 0
    assert gate.keeps(0, 1, (0, 0)) == 2


@pytest.mark.parametrize("ends", [(0, 1), (2, 1), (1, 65537)])
def test_thresholds_must_make_sense(ends: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="thresholds must be within"):
        SensitivityGate(*ends)
