"""A request whose passes come out as a trace has it, while real models do the work of every pass.

So a trace can be timed on a machine without the weights that it was recorded from; and it steps as the simulator does
(`sim.machine`), so that in virtual time both decide the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import torch

from engine.decoding.forced_routing import ForcedRouting
from engine.decoding.request import Acceptance, DraftLengths, RoundLimits, RouterOutput
from engine.decoding.sampler import Proposal, Sampler
from engine.decoding.sampling import Sampling
from spmoe.state.events import Forecast
from spmoe.trace.schema import RejectedLine, TokenLine
from spmoe.trace.windows import Request as TraceRequest
from spmoe.trace.windows import Round

SEED: Final = 0
"""Of the token ids that stand for those of the trace, which has none."""


class ForcedRequest:
    """Follows the lines of a trace's request; a `Request`.

    Raises ValueError where the trace lacks routing.
    """

    def __init__(self, lines: TraceRequest, routing: ForcedRouting, vocabulary: int, lengths: DraftLengths) -> None:
        self._lines = lines
        self._routing = routing
        self._lengths = lengths
        self._vocabulary = vocabulary
        self._random = random.Random(f"{SEED}/{lines.number}")
        self._round: Round
        self.number = lines.number
        self.sampler = Sampler(Sampling(), vocabulary)
        # The last of them is the pending token, which the first round reads.
        self.tokens = self._draw(lines.position + 1)
        self.keeps_context = False
        self.prompt: Sequence[int] = ()
        self.skipped: Sequence[int] = ()
        if lines.prefill is None:
            self.skipped = self.tokens[:-1]
        else:
            self.prompt = self._draw(lines.prefill.prompt_tokens)
            routing.set_prompt(lines.prefill)

    @property
    def position(self) -> int:
        return self._lines.position

    def prompt_read(self, logits: torch.Tensor) -> list[int]:
        self.sampler.verify((), (), logits)
        return []

    def next_round(self) -> RoundLimits | None:
        lines = self._lines.lines(self._lengths.most)
        if not lines:
            return None
        self._round = Round(lines, self._lengths.gamma)
        self._routing.set_round(self._round)
        return RoundLimits(len(self._round.whole.inputs) - 1, self._lengths.reach(len(lines)))

    def routing(self, layer: int, output: RouterOutput) -> RouterOutput:
        return self._routing.routed(layer, output)

    def forecasts(self, token: int, first: int, end: int, found: tuple[Forecast, ...]) -> tuple[Forecast, ...]:
        return self._routing.forecasts(self._read(token), "draft")[first:end]

    def confidence(self, token: int, proposal: Proposal) -> int | None:
        return self._read(token).draft_prob

    def accept(self, proposals: Sequence[Proposal], window: int, logits: torch.Tensor) -> Acceptance:
        drafted = [each.token for each in proposals[:window]]
        self.sampler.verify(drafted, [each.distribution for each in proposals[:window]], logits)
        accepted = min(self._round.whole.accepted, window)
        continues = self._round.right > window
        known = continues and window < len(proposals)
        next_token = proposals[window].token if known else self._random.randrange(self._vocabulary)
        return Acceptance(accepted, accepted, next_token, continues)

    def advance(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens
        self._lines.advance(len(tokens))

    def _read(self, token: int) -> TokenLine | RejectedLine:
        """What the draft reads as the round's input `token`."""
        return self._round.read(token)

    def _draw(self, count: int) -> list[int]:
        return [self._random.randrange(self._vocabulary) for _ in range(count)]
