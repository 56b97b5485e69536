"""How long to draft: as long as the next token is worth its loads, its drafting and the risk that it does not stand.

A token that stands saves what a token takes otherwise, λ: the time per token that was achieved lately.  So a window of
n drafted tokens, of which the first i stand with probability P(i), is worth

    λ * (P(1) + ... + P(n)) - price * (M(n + 1) - M(1)) - draft * n

where M(k) is how many experts a pass over k tokens misses and `price` what a miss takes.  (With λ the time per token of
the best lengths this is Dinkelbach's rule for the best ratio of time to tokens: a length is worth it if and only if it
lowers λ.)  M grows ever more slowly, for a window that already needs most experts misses little more: two tokens may
lose where eight win.  So it does not do to look at the next token alone, and the draft's confidence in those behind it
is not known yet.  It is reckoned backwards instead, from the longest window to none, over what confidence is usual: a
problem of optimal stopping.

A token is taken into the window, or not, by what was known before it was drawn, and never dropped later: so sampling
stays exact (a choice that looked at later tokens would favour some over others).

All numbers are integers: nanoseconds, probabilities over `ONE`, misses over `_MISS`.
"""

from __future__ import annotations

from math import comb

import numpy as np

from spmoe.policy.planner import Pace
from spmoe.policy.row_similarity import Ints
from spmoe.policy.use_rates import ONE
from spmoe.state.keys import Shape

_MISS = 1 << 10
_BINS_SHIFT = 12
_BINS = ONE >> _BINS_SHIFT
_PRIOR = 4
"""Tokens that a bin's own face value is worth, before anything was seen."""
_UNKNOWN = ONE * 3 // 4
"""The chance of a token of which the draft does not say how sure it is, at first."""
_LEVELS = 32
"""Probabilities for which the value of going on is tabled; between them it is interpolated."""
_MEMORY = 4
"""What rounds took and missed is averaged over the last 2 ** _MEMORY of them."""


class Agreement:
    """How likely the target is to agree, given how sure the draft is of a token: learned, for drafts are not
    calibrated, and starting from their word."""

    def __init__(self) -> None:
        middles = [(2 * index + 1) * ONE // (2 * _BINS) for index in range(_BINS)]
        self._stood = [_PRIOR * middle for middle in middles]
        self._tried = [_PRIOR] * _BINS
        self._drawn = [ONE] * _BINS
        """How often the draft was that sure lately."""
        self._all_stood, self._all_tried = _PRIOR * _UNKNOWN, _PRIOR

    def chance(self, probability: int | None) -> int:
        """That a token stands (/`ONE`) where those before it do."""
        if probability is None:
            return self._all_stood // self._all_tried
        index = min(probability >> _BINS_SHIFT, _BINS - 1)
        return self._stood[index] // self._tried[index]

    def drawn(self, probability: int | None) -> None:
        """The draft has proposed a token, and was that sure."""
        if probability is None:
            return
        self._drawn = [count - (count >> 6) for count in self._drawn]
        self._drawn[min(probability >> _BINS_SHIFT, _BINS - 1)] += ONE

    def learn(self, probability: int | None, stood: bool) -> None:
        """A token was verified behind others that all stood."""
        self._all_stood += stood * ONE
        self._all_tried += 1
        if probability is not None:
            index = min(probability >> _BINS_SHIFT, _BINS - 1)
            self._stood[index] += stood * ONE
            self._tried[index] += 1

    def usual(self) -> tuple[Ints, Ints]:
        """Chances, [bins], and how often each is to be expected (/`ONE`)."""
        total = sum(self._drawn)
        chances = np.array([stood // tried for stood, tried in zip(self._stood, self._tried, strict=True)])
        return chances, np.array([count * ONE // total for count in self._drawn])


class DraftLength:
    """Decides, token by token, whether to draft on; learns from every round what misses took."""

    def __init__(self, shape: Shape, slots: int, most: int, pace: Pace, agreement: Agreement) -> None:
        """`most` tokens may be drafted; somebody else teaches `agreement`."""
        self._most = most
        self._draft_ns = pace.draft_ns
        self._agreement = agreement
        keys = shape.layers * shape.experts
        spared = [ONE]
        for _ in range(most + 1):
            spared.append(spared[-1] * (shape.experts - shape.top_k) // shape.experts)
        self._misses = [max(0, keys - slots) * _MISS * (ONE - each) // ONE for each in spared]
        """Of a pass over so many tokens (/`_MISS`); at first as if all experts were equally likely."""
        self._rounds = 0
        self._subsets = [_spared(tokens) for tokens in range(most + 2)]
        self._missing: list[int] = []
        """How many experts this pass has missed so far, by how many of its tokens need them."""
        self._stall = 0
        alone = max(1, self._misses[1])
        self._stalls_ns, self._missed = alone * pace.load_ns // _MISS, alone
        """What passes waited for, and how much they missed, lately."""
        self._rounds_ns, self._tokens = shape.layers * pace.layer_ns + self._stalls_ns, ONE
        """What rounds took, and the tokens (/`ONE`) that they put out, lately."""
        self._limit = most
        self._value = self._price = 0
        self._worth: list[Ints] = []

    def round_begun(self, limit: int) -> None:
        """At most `limit` tokens may be drafted: finds out what going on is worth, for each length."""
        self._limit = min(limit, self._most)
        self._value = self._rounds_ns * ONE // self._tokens
        self._price = self._stalls_ns * _MISS // self._missed
        self._worth = self._going_on()

    def pass_begun(self, tokens: int) -> None:
        """The pass of a round, over so many tokens, goes through its layers."""
        self._missing = [0] * (tokens + 1)
        self._stall = 0

    def missed(self, tokens: int) -> None:
        """An expert that so many of them need is not there."""
        self._missing[tokens] += 1

    def stalled(self, time: int) -> None:
        """The pass had to wait so long (ns)."""
        self._stall += time

    def round_ended(self, time: int, accepted: int) -> None:
        """It took that long (ns), and so many drafted tokens stood."""
        self._rounds_ns += time - (self._rounds_ns >> _MEMORY)
        self._tokens += (accepted + 1) * ONE - (self._tokens >> _MEMORY)
        self._stalls_ns += self._stall - (self._stalls_ns >> _MEMORY)
        self._missed += sum(self._missing) * _MISS - (self._missed >> _MEMORY)
        self._rounds += 1
        self._learn_misses(min(self._rounds + 1, 1 << _MEMORY >> 1))

    def _learn_misses(self, memory: int) -> None:
        """What a part of the pass's tokens, drawn at random, would have missed; longer passes keep in proportion."""
        tokens, misses = len(self._missing) - 1, self._misses
        before = misses[tokens]
        for part, spared in enumerate(self._subsets[tokens]):
            missed = sum(count * (ONE - each) for count, each in zip(self._missing, spared, strict=True))
            misses[part] += (missed * _MISS // ONE - misses[part]) // memory
        for longer in range(tokens + 1, len(misses)):
            misses[longer] = max(misses[longer] * misses[tokens] // max(before, 1), misses[longer - 1])

    def takes(self, drafted: int, standing: int) -> bool:
        """Whether the token behind `drafted` others belongs into the window, where all of them and itself stand with
        that probability."""
        loss = self._price * (self._misses[drafted + 2] - self._misses[drafted + 1]) // _MISS
        return self._value * standing // ONE + self._at(drafted + 1, standing) > loss

    def goes_on(self, drafted: int, standing: int) -> bool:
        """Whether to draft one more token behind `drafted` that stand with that probability."""
        return drafted < self._limit and self._at(drafted, standing) > 0

    def _at(self, drafted: int, standing: int) -> int:
        """What going on is worth there."""
        if drafted >= self._limit:
            return 0
        level, rest = divmod(standing * _LEVELS, ONE)
        worth = self._worth[drafted]
        low = int(worth[level])
        return low + (int(worth[min(level + 1, _LEVELS)]) - low) * rest // ONE

    def _going_on(self) -> list[Ints]:
        """For each number of drafted tokens what going on is worth, by the probability that they stand."""
        chances, often = self._agreement.usual()
        levels = np.arange(_LEVELS + 1)[:, None]
        scaled = levels * chances  # [levels, bins], of ONE * _LEVELS
        lower, rest = np.divmod(scaled, ONE)
        upper = np.minimum(lower + 1, _LEVELS)
        gain = self._value * (scaled // _LEVELS) // ONE
        worth: list[Ints] = [np.zeros(_LEVELS + 1, np.int64)] * (self._limit + 1)
        for drafted in range(self._limit - 1, -1, -1):
            after = worth[drafted + 1]
            loss = self._price * (self._misses[drafted + 2] - self._misses[drafted + 1]) // _MISS
            value = gain - loss + after[lower] + (after[upper] - after[lower]) * rest // ONE
            value = (np.maximum(value, 0) * often).sum(axis=1) // ONE
            worth[drafted] = np.maximum(value - self._draft_ns, 0)
        return worth


def _spared(tokens: int) -> list[list[int]]:
    """For a part of so many `tokens`, 0 to all, and an expert that c of them need, 0 to all: how likely (/`ONE`) none
    of the part does."""
    return [
        [ONE * comb(tokens - needing, part) // comb(tokens, part) for needing in range(tokens + 1)]
        for part in range(tokens + 1)
    ]
