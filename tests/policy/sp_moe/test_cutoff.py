"""The analytical cutoff: solved by hand, at its limits, and monotone."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spmoe.errors import InputError
from spmoe.machine.units import ceil_ns
from spmoe.policy.sp_moe.cutoff import Cutoff, analytical_cutoff

SIZES = st.fixed_dictionaries(
    {
        "layers": st.integers(1, 60),
        "experts": st.integers(2, 128),
        "top_n": st.integers(1, 2),
        "gamma": st.integers(0, 16),
        "slots": st.integers(0, 4000),
        "draft_token_ns": st.integers(0, 10**8),
        "layer_ns": st.integers(0, 10**7),
    }
)
LOADS = st.integers(0, 10**8)


def by_definition(cutoff: Cutoff) -> int:
    """The same number straight from the words: try every c, and for it every k."""

    def fits(c: int) -> bool:
        return c * cutoff.expected <= cutoff.slots and all(
            cutoff.loads_end_ns(k) <= cutoff.reached_ns(k) for k in range(1, c + 1)
        )

    return max(c for c in range(cutoff.model_layers + 1) if c == 0 or fits(c))


def test_hand_solved() -> None:
    # 4 experts, 1 of them per token, 2 tokens: 4 (1 - 9/16) = 7/4 chosen, half of them there.
    cutoff = analytical_cutoff(layers=8, experts=4, top_n=1, gamma=2, slots=16, load_ns=8, draft_token_ns=7, layer_ns=4)
    assert cutoff.share == Fraction(1, 2)
    assert cutoff.expected == Fraction(7, 8)
    # Loads of k layers end at 7 k; layer k - 1 is reached at 14 + 4 (k - 1): 7 <= 14, 14 <= 18, 21 <= 22, 28 > 26.
    assert [cutoff.loads_end_ns(k) for k in (1, 2, 3, 4)] == [7, 14, 21, 28]
    assert [cutoff.reached_ns(k) for k in (1, 2, 3, 4)] == [14, 18, 22, 26]
    assert (cutoff.layers, cutoff.by_time, cutoff.first_late, cutoff.by_slots) == (3, 3, 4, 8)


def test_arriving_just_in_time_counts() -> None:
    # One load per layer (1 of 2 experts, 1 token), 10 ns; layer k - 1 is reached at 10 + 10 (k - 1).
    sizes = {"layers": 5, "experts": 2, "top_n": 1, "gamma": 1, "slots": 0, "draft_token_ns": 10, "layer_ns": 10}
    assert analytical_cutoff(**sizes, load_ns=10).by_time == 5
    assert analytical_cutoff(**sizes, load_ns=11).by_time == 0


def test_the_slots_bind() -> None:
    # top-8 of 8: every layer expects 8 (1 - 10/80) = 7 loads, of which one layer's fit 10 slots.
    cutoff = analytical_cutoff(
        layers=10, experts=8, top_n=8, gamma=1, slots=10, load_ns=1, draft_token_ns=10**6, layer_ns=0
    )
    assert cutoff.expected == 7
    assert (cutoff.layers, cutoff.by_slots, cutoff.by_time, cutoff.first_late) == (1, 1, 10, None)
    text = "\n".join(cutoff.explain())
    assert "cutoff: 1 of 10 layers" in text
    assert "space: 1 of 10 layers, with 7.0 loads for 10 slots; one layer more would have 14.0" in text
    assert "too late" not in text


def test_explains_the_first_layer_that_is_late() -> None:
    cutoff = analytical_cutoff(
        layers=32, experts=8, top_n=2, gamma=4, slots=128, load_ns=3_911_392, draft_token_ns=8_000_000, layer_ns=700_000
    )
    assert float(cutoff.expected) == pytest.approx(8 * (1 - 0.75**4) / 2)
    assert cutoff.explain() == (
        "cutoff: 3 of 32 layers",
        "expected prefetches per layer: 2.734 (gamma 4, the cache holds 50.0% of all experts)",
        "space: 32 of 32 layers, with 87.5 loads for 128 slots",
        "time: 3 of 32 layers; the loads of layers < 4 at 3.911 ms each end at 42.781 ms, layer 3 is reached at "
        "34.100 ms (4 x 8.000 ms draft + 3 x 0.700 ms layer): too late",
    )


@given(SIZES, LOADS)
def test_is_what_the_definition_says(sizes: dict[str, int], load_ns: int) -> None:
    cutoff = analytical_cutoff(**sizes, load_ns=load_ns)
    if sizes["gamma"] == 0:
        assert cutoff.layers == 0
    else:
        assert cutoff.layers == by_definition(cutoff) == min(cutoff.by_slots, cutoff.by_time)
    assert cutoff.explain()[0].startswith(f"cutoff: {cutoff.layers} of {sizes['layers']} layers")


@given(SIZES, LOADS, LOADS)
def test_slower_loads_never_raise_it(sizes: dict[str, int], one: int, other: int) -> None:
    quick, slow = sorted((one, other))
    assert analytical_cutoff(**sizes, load_ns=slow).layers <= analytical_cutoff(**sizes, load_ns=quick).layers


@given(SIZES, st.integers(1, 10**9), st.integers(1, 10**12), st.integers(1, 10**12))
def test_more_bandwidth_never_lowers_it(sizes: dict[str, int], size: int, one: int, other: int) -> None:
    narrow, wide = sorted((one, other))
    cutoffs = [analytical_cutoff(**sizes, load_ns=ceil_ns(size, bandwidth)).layers for bandwidth in (narrow, wide)]
    assert cutoffs[0] <= cutoffs[1]


@given(SIZES, LOADS, st.integers(0, 4000))
def test_more_slots_never_lower_it(sizes: dict[str, int], load_ns: int, more: int) -> None:
    larger = sizes | {"slots": sizes["slots"] + more}
    assert analytical_cutoff(**sizes, load_ns=load_ns).layers <= analytical_cutoff(**larger, load_ns=load_ns).layers


@given(SIZES)
def test_zero_when_nothing_fits(sizes: dict[str, int]) -> None:
    assert analytical_cutoff(**(sizes | {"slots": 0}), load_ns=1).layers == 0
    scarce = sizes | {"slots": 0, "gamma": 1, "draft_token_ns": 0}
    assert analytical_cutoff(**scarce, load_ns=1).by_time == 0


@given(SIZES, LOADS)
def test_all_layers_when_everything_is_there(sizes: dict[str, int], load_ns: int) -> None:
    everything = sizes | {"slots": sizes["layers"] * sizes["experts"], "gamma": max(1, sizes["gamma"])}
    cutoff = analytical_cutoff(**everything, load_ns=load_ns)
    assert cutoff.expected == 0
    assert cutoff.layers == sizes["layers"]


@given(SIZES)
def test_all_layers_when_time_and_space_suffice(sizes: dict[str, int]) -> None:
    roomy = sizes | {"slots": sizes["layers"] * sizes["experts"] - 1, "gamma": max(1, sizes["gamma"])}
    cutoff = analytical_cutoff(**roomy, load_ns=0)
    assert cutoff.by_time == sizes["layers"]
    # Even the fullest forecast leaves fewer loads than slots here.
    assert cutoff.layers == sizes["layers"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "field layers: expected at least 1, got 0"),
        ({"experts": 0}, "field experts: expected at least 1, got 0"),
        ({"top_n": 0}, "field top_n: expected at least 1, got 0"),
        ({"top_n": 9}, r"field top_n: expected at most 8 \(the experts of a layer\), got 9"),
        ({"gamma": -1}, "field gamma: expected at least 0, got -1"),
        ({"slots": -1}, "field slots: expected at least 0, got -1"),
        ({"load_ns": -1}, "field load_ns: expected at least 0, got -1"),
        ({"layer_ns": -1}, "field layer_ns: expected at least 0, got -1"),
    ],
)
def test_bad_numbers_are_named(change: dict[str, int], message: str) -> None:
    sizes = {"layers": 32, "experts": 8, "top_n": 2, "gamma": 4, "slots": 64}
    times = {"load_ns": 1, "draft_token_ns": 1, "layer_ns": 1}
    with pytest.raises(InputError, match="^cutoff: " + message):
        analytical_cutoff(**(sizes | times | change))
