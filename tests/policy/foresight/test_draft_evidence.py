"""The draft's forecasts, and what follows from it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spmoe.policy.foresight.draft_evidence import DraftEvidence, runs
from spmoe.policy.foresight.use_rates import Trust
from spmoe.policy.parts.fixed_point import ONE
from spmoe.state.keys import Shape


def test_what_tokens_say_is_combined() -> None:
    evidence = DraftEvidence(Shape(3, 4, 2))
    evidence.record(1, [((2, ONE // 2),), ((0, ONE // 4), (3, 0))])
    evidence.record(1, [((2, ONE // 2),)], ONE // 2)
    assert evidence.named(0) == {}
    assert evidence.named(1) == {2: ONE * 5 // 8}
    assert evidence.named(2) == {0: ONE // 4, 3: 0}
    assert 0 not in evidence and 1 in evidence and 2 in evidence
    assert evidence.layers() == evidence.news(3) == [slice(1, 3)]
    assert evidence.news(3) == []
    evidence.forget(2)
    assert 2 not in evidence and evidence.named(2) == {}
    evidence.clear()
    assert evidence.layers() == []


def test_several_layers_are_reckoned_with_as_one() -> None:
    evidence, trust = DraftEvidence(Shape(3, 4, 2)), Trust()
    evidence.record(1, [((2, ONE // 2),), ((0, ONE), (3, 0))])
    evidence.record(1, [((1, ONE // 3),)])
    trust.learn(ONE // 2, True)
    rates = np.arange(1, 9).reshape(2, 4) * 5000
    both = evidence.needed(slice(1, 3), rates, trust, 2).tolist()
    assert both == [
        evidence.needed(slice(layer, layer + 1), rates[layer - 1 : layer], trust, 2)[0].tolist() for layer in (1, 2)
    ]
    # Both tokens have spoken of layer 1: it names 2 and 1, and of the others half as many are needed as usual.
    assert [both[0][0], both[0][3]] == [2500, 10000]
    # One of two has spoken of layer 2: by half of its rate 2 may be named yet, by half of the rest be needed unnamed.
    assert both[1][2] == 35000 * 3 // 4
    assert both[1][3] == ONE // 32 + (ONE - ONE // 32) * 20000 // ONE


@given(st.sets(st.integers(0, 20)))
def test_runs_hold_all_layers_and_no_others(layers: set[int]) -> None:
    found = runs(sorted(layers))
    assert [layer for run in found for layer in range(run.start, run.stop)] == sorted(layers)
    assert all(before.stop < after.start for before, after in pairwise(found))
