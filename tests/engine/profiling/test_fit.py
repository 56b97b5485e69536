"""Fits of what was timed: samples made by a known rule give the rule back."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("torch", reason="the engine needs torch")

from engine.profiling.fit import Line, Median, fit_landings, fit_layers, medians, middle, usual_ratio
from engine.profiling.step_timings import Span

KERNELS = {1: 1000.0, 2: 1100.0, 4: 1300.0}
BASE = {1: 5000, 2: 6000, 3: 6500}
ONE, SEVERAL, BOOKKEEPING = 200, 900, 350


def expert(tokens: int) -> float:
    """1000, 1100, then 100 more per token."""
    return 1000 + 100 * (tokens - 1) + (ONE if tokens == 1 else SEVERAL)


def layer(rng: random.Random, tokens: int, landed: int = 0, each: int = 0, cold: int = 0) -> Span:
    """Of a model with top-2 of 4 experts, each of a token's two another one."""
    counts = [0, 0, 0, 0]
    for _ in range(tokens):
        for chosen in rng.sample(range(4), 2):
            counts[chosen] += 1
    experts = tuple(count for count in counts if count)
    computing = round(BOOKKEEPING + sum(map(expert, experts)) + landed * each)
    return Span(tokens, experts, computing - BOOKKEEPING + BASE[tokens] + cold, computing, landed, 0, 0)


def spans(landed: bool = False, each: int = 0, cold: int = 0) -> list[Span]:
    rng = random.Random(0)
    return [
        layer(rng, tokens, rng.randrange(1, 4) if landed else 0, each, cold) for tokens in (1, 2, 3) for _ in range(60)
    ]


def sure(ns: float) -> Median:
    return Median(ns, ns, ns, 9)


def test_a_line_through_points_of_a_line() -> None:
    line = Line.through({float(x): sure(12_000 + 0.5 * x) for x in (1000, 4000, 10**6)})
    assert (line.start, line.slope) == pytest.approx((12_000, 0.5))
    assert line.residuals == pytest.approx((0, 0, 0), abs=1e-3)


def test_a_small_transfer_counts_as_much_as_a_large_one() -> None:
    """Two small ones say 10 ns, which in absolute terms the large one would drown."""
    points = {10.0: 20.0, 20.0: 30.0, 10_000.0: 9_000.0}
    line = Line.through({x: sure(y) for x, y in points.items()})
    assert abs(line.residuals[0]) < 2 and abs(line.residuals[1]) < 3


def test_one_that_lies_apart_counts_for_little() -> None:
    """Small transfers may be slowed down by something of their own."""
    points = {float(x): sure(12_000 + 0.372 * x) for x in (65_536, 262_144, 393_216, 1_572_864, 6_291_456)}
    line = Line.through({**points, 65_536.0: sure(90_000)})
    assert line.slope == pytest.approx(0.372, rel=0.005) and line.start == pytest.approx(12_000, rel=0.1)
    assert line.residuals[0] < -50_000


def test_what_is_uncertain_counts_less() -> None:
    points = {float(x): sure(12_000 + 0.5 * x) for x in (1000, 4000, 10**5, 10**6)}
    late = Median(2 * points[1000.0].ns, points[1000.0].ns, 4 * points[1000.0].ns, 9)
    line = Line.through({**points, 1000.0: late})
    assert line.slope == pytest.approx(0.5, rel=0.01)


def test_what_experts_take_where_the_driver_sees_the_end_of_them() -> None:
    layers = fit_layers(spans(), KERNELS, seen=True)
    assert {tokens: layers.expert[tokens] for tokens in (1, 2)} == pytest.approx({1: 1200, 2: 2000})
    assert layers.bookkeeping == pytest.approx(BOOKKEEPING)
    assert {tokens: each.ns for tokens, each in layers.base.items()} == pytest.approx(BASE)


def test_what_layers_take_where_it_does_not() -> None:
    """Tokens per layer always add up to the same, so one kind of expert may be taken for a bit slower and the layer for
    faster; what layers take comes out right all the same."""
    known = spans()
    layers = fit_layers(known, KERNELS, seen=False)
    for span in known:
        assert layers.base[span.tokens].ns + layers.of(span) == pytest.approx(span.ns)


def test_readings_beside_something_else_are_left_out() -> None:
    disturbed = spans()
    for place in range(0, len(disturbed), 9):
        span = disturbed[place]
        disturbed[place] = span._replace(ns=span.ns + 10**6, computing=span.computing + 10**6)
    layers = fit_layers(disturbed, KERNELS, seen=True)
    assert {tokens: layers.expert[tokens] for tokens in (1, 2)} == pytest.approx({1: 1200, 2: 2000})


@pytest.mark.parametrize("seen", [True, False])
def test_what_arrivals_cost(seen: bool) -> None:
    layers = fit_layers(spans(), KERNELS, seen)
    found = fit_landings(spans(landed=True, each=40, cold=130), layers, seen, 0.0)
    assert (found.each, found.cold) == pytest.approx((40, 130), abs=1e-6)
    assert found.off.ns == pytest.approx(0, abs=1e-6)
    nothing = fit_landings(spans(), layers, seen, 0.0)
    assert (nothing.each, nothing.cold) == (0, 0)


def test_what_the_scheduler_takes_is_no_arrival() -> None:
    layers = fit_layers(spans(), KERNELS, seen=True)
    found = fit_landings([span._replace(landed=1) for span in spans()], layers, True, -25.0)
    assert found.each == pytest.approx(25)


def test_medians_with_quartiles() -> None:
    assert Median.of([5.0]) == (5.0, 5.0, 5.0, 1)
    assert Median.of([1.0, 2.0, 3.0]) == (2.0, 1.0, 3.0, 3)
    assert Median.of([1500.0, 2500.0, 3500.0]).to_json() == {
        "median_us": 2.5,
        "quartiles_us": [1.5, 3.5],
        "readings": 3,
    }
    assert medians({3: [1.0] * 8, 1: [2.0] * 7}).keys() == {3}
    assert list(medians({3: [1.0], 1: [2.0]})) == [1, 3]
    assert (middle([]), middle([3.0, 1.0, 2.0])) == (0.0, 2.0)


def test_a_ratio_without_the_minutes_in_which_something_else_ran() -> None:
    """Every tenth reading is twice as long: 1.1 on average.  In a third of the time all take three times as long."""
    pairs = [(20.0 if number % 10 == 0 else 10.0, 10.0) for number in range(300)]
    assert usual_ratio(pairs) == pytest.approx(1.1)
    disturbed = [(3 * one, other) if 100 <= number < 200 else (one, other) for number, (one, other) in enumerate(pairs)]
    assert usual_ratio(disturbed) == pytest.approx(1.1)
    assert usual_ratio([(3.0, 2.0)]) == 1.5
    assert usual_ratio([(1.0, 1.0)] * 50 + [(3.0, 1.0)]) == pytest.approx(53 / 51)
    assert usual_ratio([]) == 1.0
