"""Drafts without a model: what followed the last tokens of a request where they came before in it (prompt lookup).

It costs no time and no memory, and pays where a text repeats itself: code that is edited, documents that are quoted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from engine.decoding.distribution import Distribution
from engine.decoding.draft_model import Poll
from engine.decoding.recorder import Recorder
from engine.decoding.request import Request
from engine.decoding.sampler import Proposal
from spmoe.state.events import Forecast

LONGEST: Final = 3
"""The most tokens that are looked up; where they did not come before, fewer are."""


def continuation(tokens: Sequence[int], count: int, longest: int = LONGEST) -> list[int]:
    """At most `count` tokens that followed where the last `longest` of `tokens`, or else fewer, came last before."""
    for length in range(min(longest, len(tokens) - 1), 0, -1):
        ending = list(tokens[len(tokens) - length :])
        for start in range(len(tokens) - length - 1, -1, -1):
            if tokens[start] == ending[0] and list(tokens[start : start + length]) == ending:
                return list(tokens[start + length : start + length + count])
    return []


class NgramDrafter:
    """Proposes what followed before.  It forecasts no experts, and has no context of its own."""

    review = None
    reads = 0

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._request: Request
        self._found: list[int] = []
        """What may be proposed in the round under way."""
        self.proposals: list[Proposal] = []

    def begin(self, request: Request) -> None:
        """A new request."""
        self._request = request
        self.proposals = []

    def most(self, limit: int) -> int:
        """How many tokens it can propose in the next round, at most `limit`."""
        self._found = continuation(self._request.tokens, limit) if limit else []
        return len(self._found)

    def begin_round(self, position: int) -> None:
        """Nothing is known from the round before."""

    def draft_layers(self, token: int, first: int, end: int, poll: Poll) -> tuple[Forecast, ...]:
        """Never asked for: no policy that needs forecasts is run with it."""
        raise NotImplementedError

    def draft_token(self, token: int, poll: Poll) -> int | None:
        """Proposes the next token; how likely it is nobody knows."""
        proposed = self._found[token]
        greedy = self._request.sampler.greedy
        certain = None if greedy else Distribution(torch.tensor([proposed]), torch.ones(1, dtype=torch.float64))
        self.proposals.append(Proposal(proposed, 1.0, certain))
        return None

    def round_ended(self, length: int, kept: int) -> None:
        """Of what was proposed nothing is kept."""
        self.proposals = []

    def cancel(self) -> None:
        """No pass is ever under way."""
