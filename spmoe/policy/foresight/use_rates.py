"""How often each expert has been used lately, and how far the draft's word about it can be trusted.

All numbers are integers over `ONE`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from spmoe.policy.parts.fixed_point import ONE, Ints
from spmoe.state.keys import Shape

FAST, SLOW = 2, 5
"""The two memories: every pass moves them by 1/4 and 1/32 of the difference."""

LEAST = ONE >> 6
"""No expert's rate counts as less: what was never seen may come all the same."""

_HALF, _LEAST = np.array(1), np.array(LEAST)

_BINS_SHIFT = 12
_SHIFT = np.array(_BINS_SHIFT)
_BINS = ONE >> _BINS_SHIFT
_PRIOR = 4
"""Passes that a bin is worth before anything was seen: until then a forecast's probability is taken as it is."""


class UseRates:
    """Per expert, the mean of two decaying averages of its use by each pass of its layer.

    A pass of n tokens that sends c of them to an expert counts as (n + c) / 2n, or as 0 where c is: half for being
    used at all, half for how much.  A pass that needs an expert for many tokens will more likely need it again.
    """

    def __init__(self, shape: Shape) -> None:
        layers, experts = shape.layers, shape.experts
        start = ONE * shape.top_k // experts
        self._averages = np.full((layers, 2 * experts), start, np.int64)
        """Per layer the fast ones of all experts, then the slow ones."""
        self._shifts = np.repeat(np.array((FAST, SLOW)), experts)
        self._uses = array("q", [0]) * (2 * experts)
        """Of the pass under way, for both memories; between passes all 0."""
        self._all_uses = np.frombuffer(self._uses, np.int64)
        self._rates = np.full((layers, experts), max(start, LEAST), np.int64)

    def of(self, layers: slice) -> Ints:
        """The rates of these layers' experts, [layers, experts], `LEAST` to `ONE`; a view."""
        rates: Ints = self._rates[layers]
        return rates

    def learn(self, layer: int, experts: Sequence[int], tokens: Sequence[int], window: int) -> None:
        """A pass of `window` tokens sent `tokens` of them to these experts."""
        self._move(layer, experts, [(window + count) * ONE // (2 * window) for count in tokens])

    def learn_prompt(self, layer: int, experts: Sequence[int], tokens: Sequence[int], prompt: int, window: int) -> None:
        """A prompt did: it counts as a pass of `window` tokens that are spread as the prompt's."""
        self._move(layer, experts, [min(ONE, window * count * ONE // prompt) for count in tokens])

    def _move(self, layer: int, experts: Sequence[int], uses: Sequence[int]) -> None:
        averages, rates, used = self._averages[layer], self._rates[layer], self._uses
        count = len(rates)
        for expert, use in zip(experts, uses, strict=True):
            used[expert] = used[count + expert] = use
        averages += (self._all_uses - averages) >> self._shifts
        self._all_uses.fill(0)
        np.add(averages[:count], averages[count:], out=rates)
        np.right_shift(rates, _HALF, out=rates)
        np.maximum(rates, _LEAST, out=rates)


class Trust:
    """How often experts were needed that the draft named, by how sure it was, and those that it did not name.

    The draft's probabilities rank well and are too small (see `spmoe.trace.calibration`), and a draft may be worse than
    it says: so they are corrected by experience.
    """

    def __init__(self) -> None:
        self._needed = [_PRIOR * (2 * index + 1) * ONE // (2 * _BINS) for index in range(_BINS)]
        self._named = [_PRIOR * ONE] * _BINS
        self._chances = np.zeros(_BINS + 2, np.int64)
        """Per bin, how likely those in it are needed; then the last bin's again, for the draft may be sure; and last 0,
        which -1 finds, for those that it does not name."""
        for index in range(_BINS):
            self._note(index)
        self._unnamed_needed = _PRIOR * ONE
        self._unnamed_expected = 2 * _PRIOR * ONE

    def named(self, sure: Ints) -> Ints:
        """The probabilities that experts are needed of which the draft is so `sure` (/`ONE`); 0 where that is -1."""
        chances: Ints = self._chances[sure >> _SHIFT]
        return chances

    def unnamed(self) -> int:
        """By how much (/`ONE`) an expert that the draft does not name is less needed than its rate says."""
        return min(ONE, self._unnamed_needed * ONE // self._unnamed_expected)

    def learn(self, sure: int, needed: bool) -> None:
        """The draft was that sure of an expert, and it was needed or not."""
        index = min(sure >> _BINS_SHIFT, _BINS - 1)
        self._named[index] += ONE
        self._needed[index] += needed * ONE
        self._note(index)

    def learn_unnamed(self, expected: int, needed: int) -> None:
        """Of the experts of a layer that the draft did not name, `needed` were, where their rates add up to
        `expected`."""
        self._unnamed_expected += expected
        self._unnamed_needed += needed * ONE

    def _note(self, index: int) -> None:
        """A bin has changed."""
        self._chances[index] = self._needed[index] * ONE // self._named[index]
        if index == _BINS - 1:
            self._chances[_BINS] = self._chances[index]
