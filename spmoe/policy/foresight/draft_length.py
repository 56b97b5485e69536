"""How long to draft: as long as the next token is worth its loads, its drafting and the risk that it does not stand.

A token that stands saves what a token takes otherwise, λ: the time per token that was achieved lately.  So a window of
n drafted tokens, of which the first i stand with probability P(i), is worth

    λ * (P(1) + ... + P(n)) - (W(n + 1) - W(1)) - draft * n

where W(k) is how long a pass over k tokens waits for experts, and `draft` what a token takes to draft (less than the
draft's time, where that was drafted in the pass before, while that waited).  With λ the time per token of the best
lengths this is Dinkelbach's rule for the best ratio of time to tokens: a length is worth it if and only if it lowers λ.

W grows ever more slowly, for tokens share experts: two may lose where eight win.  So it does not do to look at the next
token alone, and the draft's confidence in those behind it is not known yet.  It is reckoned backwards instead, from the
longest window to none, over what confidence is usual: a problem of optimal stopping.

A token is taken into the window, or not, by what was known before it was drawn, and never dropped later: so sampling
stays exact (a choice that looked at later tokens would favour some over others).

All numbers are integers: nanoseconds, probabilities over `ONE`.
"""

from __future__ import annotations

import math

import numpy as np

from spmoe.policy.parts.fixed_point import ONE, Ints
from spmoe.policy.parts.pace import Pace
from spmoe.state.keys import Shape

_ALONE = 1 << 10
"""The growth of a pass over one token."""
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
    """Decides, token by token, whether to draft on; learns from every round what it took."""

    def __init__(self, shape: Shape, slots: int, most: int, pace: Pace, agreement: Agreement) -> None:
        """`most` tokens may be drafted; somebody else teaches `agreement`."""
        self._most = most
        self._agreement = agreement
        self._growth = growth(shape, slots, most + 1)
        alone = max(0, shape.layers * shape.experts - slots) * shape.top_k / shape.experts
        self._stalls_ns, self._grown = round(alone * pace.load_ns), _ALONE
        """What passes waited lately, and by how much more they miss than passes over one token."""
        self._rounds_ns, self._tokens = shape.layers * pace.layer_ns + self._stalls_ns, ONE
        """What rounds took, and the tokens (/`ONE`) that they put out."""
        self._drafting_ns, self._drafted = pace.draft_ns, ONE
        """What drafting took of that, and the tokens (/`ONE`) that were drafted."""
        self._window = 1
        self._stall = self._drafting = 0
        """Of the round under way."""
        self._limit = most
        self._value = self._draft = 0
        self._losses: list[int] = []
        """What is lost by the token behind so many others, if nothing is won."""
        self._worth: list[Ints] = []
        """For each number of drafted tokens what going on is worth, by the probability that they stand."""

    def round_begun(self, limit: int) -> None:
        """At most `limit` tokens may be drafted: finds out what going on is worth, for each length."""
        self._limit = min(limit, self._most)
        self._value = self._rounds_ns * ONE // self._tokens
        self._draft = self._drafting_ns * ONE // self._drafted
        self._losses = [
            self._stalls_ns * (self._growth[drafted + 2] - self._growth[drafted + 1]) // self._grown
            for drafted in range(self._limit)
        ]
        self._worth = self._going_on()

    def drafted(self, time: int, tokens: int) -> None:
        """Drafting is over: it took that long (ns), and `tokens` go into the window."""
        self._drafting, self._window, self._stall = time, tokens + 1, 0

    def stalled(self, time: int) -> None:
        """The pass had to wait so long (ns)."""
        self._stall += time

    def round_ended(self, time: int, accepted: int) -> None:
        """It took that long (ns), and so many drafted tokens stood."""
        self._rounds_ns = _faded(self._rounds_ns) + time
        self._tokens = _faded(self._tokens) + (accepted + 1) * ONE
        self._stalls_ns = _faded(self._stalls_ns) + self._stall
        self._grown = _faded(self._grown) + self._growth[self._window]
        if self._window > 1:
            self._drafting_ns = _faded(self._drafting_ns) + self._drafting
            self._drafted = _faded(self._drafted) + (self._window - 1) * ONE

    def takes(self, drafted: int, standing: int) -> bool:
        """Whether the token behind `drafted` others belongs into the window, where all of them and itself stand with
        that probability."""
        return self._value * standing // ONE + self._at(drafted + 1, standing) > self._losses[drafted]

    def goes_on(self, drafted: int, standing: int) -> bool:
        """Whether to draft one more token behind `drafted` that stand with that probability."""
        return self._at(drafted, standing) > 0

    def _at(self, drafted: int, standing: int) -> int:
        """What going on is worth there."""
        level, rest = divmod(standing * _LEVELS, ONE)
        worth = self._worth[drafted]
        low = int(worth[level])
        return low + (int(worth[min(level + 1, _LEVELS)]) - low) * rest // ONE

    def _going_on(self) -> list[Ints]:
        """What going on is worth, from the longest window to none."""
        chances, often = self._agreement.usual()
        scaled = np.arange(_LEVELS + 1)[:, None] * chances  # [levels, bins], of ONE * _LEVELS
        lower, rest = np.divmod(scaled, ONE)
        upper = np.minimum(lower + 1, _LEVELS)
        gain = self._value * (scaled // _LEVELS) // ONE
        worth: list[Ints] = [np.zeros(_LEVELS + 1, np.int64)]
        for loss in reversed(self._losses):
            below, above = worth[-1].take(lower), worth[-1].take(upper)
            value = gain - loss + below + (above - below) * rest // ONE
            worth.append(np.maximum(np.maximum(value, 0) @ often // ONE - self._draft, 0))
        worth.reverse()
        return worth


def growth(shape: Shape, slots: int, tokens: int) -> list[int]:
    """How much more (/`_ALONE`) passes over 0 to `tokens` tokens miss than a pass over one: a power of their number.

    Where hardly any expert has a slot, passes miss what they need, which grows as if all experts were equally likely.
    The more have one, the rarer are those that have none, and the less do tokens share of them: halfway to sharing
    nothing, where half of the experts have one or more.  (Measured on Mixtral-8x7B: docs/foresight.md.)
    """
    if tokens < 2:
        return [0, _ALONE]
    together = (1 - (1 - shape.top_k / shape.experts) ** tokens) * shape.experts / shape.top_k
    alike, share = math.log(together, tokens), slots / (shape.layers * shape.experts)
    # Rounded, since libraries may differ in the last digits.
    exponent = round(alike + (1 - alike) * min(share, 0.5), 3)
    return [round(_ALONE * count**exponent) for count in range(tokens + 1)]


def _faded(total: int) -> int:
    """What is left of a total after a round."""
    return total - (total >> _MEMORY)
