"""How often experts are used, and how far the draft is to be trusted."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spmoe.policy.foresight.use_rates import LEAST, Trust, UseRates
from spmoe.policy.parts.fixed_point import ONE
from spmoe.state.keys import Shape


def test_a_pass_moves_both_memories_by_how_much_was_used() -> None:
    rates = UseRates(Shape(2, 4, 2))
    # Both start at 1/2.  Of 4 tokens 2 go to expert 1, which counts as (4 + 2) / 8, and all 4 to expert 3, 8 / 8.
    rates.learn(1, (3, 1), (4, 2), 4)
    fast = [3 / 8, 1 / 2 + 1 / 16, 3 / 8, 1 / 2 + 1 / 8]
    slow = [1 / 2 - 1 / 64, 1 / 2 + 1 / 128, 1 / 2 - 1 / 64, 1 / 2 + 1 / 64]
    assert rates.of(slice(1, 2)).tolist() == [
        [ONE * (quick + long) / 2 for quick, long in zip(fast, slow, strict=True)]
    ]
    assert rates.of(slice(0, 1)).tolist() == [[ONE // 2] * 4]


def test_a_prompt_counts_as_a_pass_of_few_tokens() -> None:
    rates = UseRates(Shape(1, 4, 2))
    # Of 100 tokens 10 are half a token of 5; 60 are more than one, which cannot count as more than used.
    rates.learn_prompt(0, (0, 1), (10, 60), 100, 5)
    assert rates.of(slice(0, 1)).tolist() == [
        [ONE // 2, ONE * (5 / 8 + 33 / 64) // 2, *[ONE * (3 / 8 + 31 / 64) // 2] * 2]
    ]


@given(st.lists(st.sets(st.integers(0, 5)), max_size=60))
def test_rates_stay_within_bounds(passes: list[set[int]]) -> None:
    rates = UseRates(Shape(1, 6, 2))
    for needed in passes:
        rates.learn(0, tuple(needed), (1,) * len(needed), 1)
        assert all(LEAST <= rate <= ONE for rate in rates.of(slice(0, 1))[0].tolist())


def named(trust: Trust, sure: int) -> int:
    return int(trust.named(np.array([sure]))[0])


def test_trust_begins_with_the_drafts_word_and_ends_with_the_truth() -> None:
    trust = Trust()
    sure = ONE // 4 + 10
    # The fifth of sixteen bins, whose middle is 9/32.
    assert named(trust, sure) == ONE * 9 // 32
    assert trust.unnamed() == ONE // 2
    for _ in range(12):
        trust.learn(sure, True)
    assert named(trust, sure) == ONE * (4 * 9 // 8 + 48) // (16 * 4) + ONE * 1 // 128
    assert named(trust, ONE) == ONE * 31 // 32
    trust.learn_unnamed(8 * ONE, 0)
    assert trust.unnamed() == ONE // 4
    trust.learn_unnamed(0, 100)
    assert trust.unnamed() == ONE


def test_whom_the_draft_does_not_name_has_no_chance_by_its_word() -> None:
    assert named(Trust(), -1) == 0
    assert named(Trust(), 0) == ONE // 32
