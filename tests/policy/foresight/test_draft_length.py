"""How long to draft: solved by hand, and against plain recursion."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spmoe.policy.foresight.draft_length import Agreement, DraftLength, growth
from spmoe.policy.parts.fixed_point import ONE
from spmoe.policy.parts.pace import Pace
from spmoe.state.keys import Shape

SHAPE = Shape(4, 8, 2)
PACE = Pace(load_bytes=1, latency_ns=0, transfer_ns=1000, draft_ns=300, layer_ns=100)


def length(most: int, slots: int = 16, agreement: Agreement | None = None, pace: Pace = PACE) -> DraftLength:
    return DraftLength(SHAPE, slots, most, pace, agreement or Agreement())


def sure_of_all() -> Agreement:
    """Of a draft that is as sure as can be, as a rule."""
    agreement = Agreement()
    for _ in range(300):
        agreement.drawn(ONE)
    return agreement


def test_the_drafts_word_counts_until_something_is_known() -> None:
    agreement = Agreement()
    # The middle of the last and of the first of 16 bins.
    assert agreement.chance(ONE) == ONE * 31 // 32 and agreement.chance(0) == ONE // 32
    assert agreement.chance(None) == ONE * 3 // 4
    for _ in range(4):
        agreement.learn(ONE, False)
    # It was worth four tokens, and four more have not stood.
    assert agreement.chance(ONE) == ONE * 31 // 64 and agreement.chance(0) == ONE // 32
    agreement.learn(None, True)
    assert agreement.chance(None) == (3 * ONE + ONE) // 9


def test_waits_grow_with_the_window_and_ever_more_slowly() -> None:
    grown = growth(SHAPE, 16, 17)
    steps = [after - before for before, after in pairwise(grown)]
    assert grown[:2] == [0, 1024] and steps == sorted(steps, reverse=True) and steps[-1] > 0
    # Two of eight: with 17 tokens 7.94 of 8 experts if all are equally likely, a power of 0.487; midway to one 0.743.
    assert grown[17] == round(1024 * 17**0.743)
    # Where fewer stay it is closer to that, and where more do it is not: an eighth of the way, and midway.
    assert growth(SHAPE, 4, 17)[17] == round(1024 * 17**0.551)
    assert growth(SHAPE, 24, 17) == grown
    assert growth(Shape(1, 4, 4), 2, 2)[2] == round(1024 * 2**0.5)  # All are needed anyway.
    assert growth(SHAPE, 16, 1) == [0, 1024]


def test_the_first_round_reckons_with_what_the_machine_is_said_to_take() -> None:
    # 16 of 32 experts are absent, a quarter of which a token needs: four loads of 1000, and four layers of 100.
    free = length(1, pace=PACE._replace(draft_ns=0))
    free.round_begun(1)
    # A second token takes 4000 * (2**e - 1) more, e = (1 + log2(1 + 6/8)) / 2: 3,484; a token is worth 4,400.
    sure = 3484 * ONE // 4400
    assert free.takes(0, sure + 50) and not free.takes(0, sure - 50)


def test_nothing_is_drafted_where_it_takes_longer_than_it_saves() -> None:
    slow = length(4, pace=PACE._replace(draft_ns=10_000))
    slow.round_begun(4)
    assert not slow.goes_on(0, ONE)
    # Where all experts are there nothing but the draft's time is lost.
    quick = length(4, slots=32, pace=PACE._replace(draft_ns=10))
    quick.round_begun(4)
    assert quick.goes_on(0, ONE) and quick.takes(3, ONE // 2)
    assert not quick.goes_on(4, ONE)  # No more than that are allowed.
    quick.round_begun(2)
    assert not quick.goes_on(2, ONE)


def test_one_more_token_may_lose_where_eight_win() -> None:
    free = PACE._replace(draft_ns=0)
    one, eight = length(1, agreement=sure_of_all(), pace=free), length(8, agreement=sure_of_all(), pace=free)
    for each in (one, eight):
        for _ in range(100):
            each.drafted(0, 0)
            each.stalled(4000)
            each.round_ended(3000, 0)
        each.round_begun(8)
    # A token is worth 3000; two tokens wait 2953 longer than one (up to nine, e = 0.798), nine 19,100.
    sure = ONE * 31 // 32
    assert not one.takes(0, sure)
    assert eight.takes(0, sure) and 3000 * sure // ONE < 2953


def test_what_rounds_take_is_learned_and_forgotten() -> None:
    learner = length(2, agreement=sure_of_all())
    learner.round_begun(2)
    assert learner.goes_on(0, ONE)
    for _ in range(80):  # Plain decoding takes next to nothing, and drafting much.
        learner.drafted(900, 1)
        learner.stalled(50)
        learner.round_ended(1000, 1)
    learner.round_begun(2)
    assert not learner.goes_on(0, ONE)


@settings(max_examples=40, deadline=None)
@given(
    most=st.integers(1, 5),
    slots=st.integers(0, 32),
    draft_ns=st.integers(0, 3000),
    told=st.lists(st.tuples(st.integers(0, ONE), st.booleans()), max_size=60),
    standing=st.integers(ONE // 8, ONE),
)
def test_going_on_is_worth_what_plain_recursion_says(
    most: int, slots: int, draft_ns: int, told: list[tuple[int, bool]], standing: int
) -> None:
    agreement = Agreement()
    for sure, stood in told:
        agreement.drawn(sure)
        agreement.learn(sure, stood)
    each = length(most, slots, agreement, PACE._replace(draft_ns=draft_ns))
    each.round_begun(most)
    chances, often = (row.tolist() for row in agreement.usual())
    stall = (32 - slots) * 2 / 8 * 1000
    value, grown = 400 + stall, growth(SHAPE, slots, most + 1)

    def worth(drafted: int, standing: float) -> float:
        if drafted == most:
            return 0
        loss = stall * (grown[drafted + 2] - grown[drafted + 1]) / 1024
        sum_ = 0.0
        for chance, share in zip(chances, often, strict=True):
            then = standing * chance / ONE
            sum_ += share / ONE * max(0.0, value * then - loss + worth(drafted + 1, then))
        return max(0.0, sum_ - draft_ns)

    # It is tabled for 33 probabilities and interpolated between them, where it is convex: never less than it is.
    exact = worth(0, standing / ONE) if most <= 3 else None
    if exact is not None and exact > 0.03 * value:
        assert each.goes_on(0, standing)
    if exact == 0 and draft_ns > 0.1 * value:
        assert worth(0, min(1, standing / ONE + 1 / 32)) > 0 or not each.goes_on(0, standing)


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_a_round_may_be_shorter(limit: int) -> None:
    each = length(7)
    each.round_begun(limit)
    assert not each.goes_on(limit, ONE)
