"""A request while it is decoded: its tokens, and where the outcomes of its forward passes come from.

Forward passes are the same for all requests.  What comes of them is what the models compute and a sampler chooses
(`sampled_request`), or what a trace has (`forced_request`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from engine.decoding.sampler import Proposal, Sampler
from spmoe.policy.parts.speculation import Speculation
from spmoe.state.events import Forecast


class RouterOutput(NamedTuple):
    """What the router of a layer chose for the T tokens of a pass, on the device and in plain numbers.

    `experts` (int64) and `weights` are [T, top_k]; `chosen` are the experts by rank, per token; `shares` are weights
    over 65536, as `gates` are, where a policy needs them; `next_gate` is what the next layer's router would choose,
    where it is needed.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    chosen: list[list[int]]
    shares: list[list[int]]
    next_gate: tuple[Forecast, ...] | None
    gates: tuple[Forecast, ...]


class DraftLengths(NamedTuple):
    """How far a draft may go: at most `gamma` tokens in the window, and `past` behind a full one.

    `chosen`: whether the scheduler chooses the length of each draft.
    """

    gamma: int = 0
    past: int = 0
    chosen: bool = False

    @classmethod
    def of(cls, speculation: Speculation, configured: int, chosen: bool) -> DraftLengths:
        """Those of a policy; `configured` is the scheduler's gamma."""
        return cls(speculation.gamma(configured), max(0, speculation.lead(configured) - 1), chosen)

    @property
    def most(self) -> int:
        """How many tokens of a request a round may look at, from the pending one on."""
        return self.gamma + 1 + self.past

    def reach(self, left: int) -> int:
        """How many tokens the draft may read in a round, of `left` that are yet to come."""
        return min(left, self.most) if self.past else 0


class RoundLimits(NamedTuple):
    """A round of a request: `drafted` and `reach` as `limit` and `reach` in `spmoe.drive.step.step`."""

    drafted: int
    reach: int


class Acceptance(NamedTuple):
    """What became of a window.

    The first `accepted` drafted tokens stand, and `next_token` follows them.  The target agrees with the first `agreed`
    proposals: with more than stand where the request ends among them, and with one past the window if that is
    `next_token`; then, unless the request ends, what the draft has read past the window stands (`continues`).
    """

    accepted: int
    agreed: int
    next_token: int
    continues: bool


class Request(Protocol):
    """What a `Decoder` needs to know of a request."""

    number: int
    sampler: Sampler
    tokens: list[int]
    """All so far; behind the prompt's pass the last one is pending: no pass has read it."""
    prompt: Sequence[int]
    """Read with experts before the first round, if there is one."""
    keeps_context: bool
    """Whether what the models have read of the request before stays in their contexts, as far as it begins alike."""
    skipped: Sequence[int]
    """In the context all the same, but read without experts: for requests of which a trace has only the end."""

    @property
    def position(self) -> int:
        """Of the pending token in the request."""

    def prompt_read(self, logits: torch.Tensor) -> list[int]:
        """The prompt's pass has computed `logits` [1, vocabulary]; returns the token put out, if it is one."""

    def next_round(self) -> RoundLimits | None:
        """How far the next round may go; None where the request is over."""

    def routing(self, layer: int, output: RouterOutput) -> RouterOutput:
        """What takes the place of a router's `output`."""

    def forecasts(self, token: int, first: int, end: int, found: tuple[Forecast, ...]) -> tuple[Forecast, ...]:
        """What takes the place of those `found` for layers `first` to `end` on the round's input `token`."""

    def confidence(self, token: int, proposal: Proposal) -> int | None:
        """The draft's (/65536) in what it proposes behind the round's input `token`, as the scheduler is to know it."""

    def accept(self, proposals: Sequence[Proposal], window: int, logits: torch.Tensor) -> Acceptance:
        """What becomes of the first `window` proposals, by `logits` [window + 1, vocabulary]; others lie past it."""

    def advance(self, tokens: Sequence[int]) -> None:
        """A round has put out these tokens."""
