"""A request whose tokens are chosen from what the models compute."""

from __future__ import annotations

from collections.abc import Sequence, Set

import torch

from engine.decoding.draft_room import DraftRoom
from engine.decoding.logprobs import TokenLogprobs, logprobs_of
from engine.decoding.request import Acceptance, DraftLengths, RoundLimits, RouterOutput
from engine.decoding.sampler import Proposal, Sampler
from engine.decoding.to_host import fixed_point
from engine.decoding.warper import History
from spmoe.errors import InputError
from spmoe.state.events import Forecast


class SampledRequest:
    """Greedy decoding or sampling behind a prompt; a `Request`."""

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        budget: int,
        ends: Set[int],
        sampler: Sampler,
        lengths: DraftLengths,
        room: DraftRoom,
        logprobs: int | None = None,
        keeps_context: bool = False,
    ) -> None:
        """At most `budget` >= 1 tokens are put out; the first of `ends` is the last.  Rounds draft as
        many tokens as there is `room` for.  With `logprobs`, those of tokens put out and of so many likeliest ones are
        kept."""
        if logprobs is not None and logprobs < 0:
            raise InputError(f"logprobs: expected a number of tokens, got {logprobs}")
        self.number = number
        self.prompt: Sequence[int] = tuple(prompt)
        self.skipped: Sequence[int] = ()
        self.keeps_context = keeps_context
        self.tokens = list(prompt)
        self.sampler = sampler
        self._length = len(prompt) + budget
        self._ends = ends
        self._lengths = lengths
        self._room = room
        self._top = logprobs
        self._logprobs: list[TokenLogprobs] = []

    @property
    def position(self) -> int:
        return len(self.tokens) - 1

    @property
    def history(self) -> History:
        return History(self.tokens, len(self.prompt))

    def prompt_read(self, logits: torch.Tensor) -> list[int]:
        token = self.sampler.verify((), (), logits, self.history).next_token
        self._note([token], logits)
        self.tokens.append(token)
        return [token]

    def next_round(self) -> RoundLimits | None:
        left = self._length - len(self.tokens)
        if left <= 0 or self.tokens[-1] in self._ends:
            return None
        # Whether a token drawn in the round before is verified must not depend on what it has brought about since.
        biased = self._lengths.chosen and not self.sampler.greedy
        most = self._room.most(self.position)
        stays = biased or most < self._lengths.gamma
        return RoundLimits(min(most, left - 1), 0 if stays else self._lengths.reach(left))

    def routing(self, layer: int, output: RouterOutput) -> RouterOutput:
        return output

    def forecasts(self, token: int, first: int, end: int, found: tuple[Forecast, ...]) -> tuple[Forecast, ...]:
        return found

    def confidence(self, token: int, proposal: Proposal) -> int | None:
        """Where it decides on the length, it must not depend on which token was drawn."""
        return fixed_point(proposal.largest if self._lengths.chosen else proposal.probability)

    def accept(self, proposals: Sequence[Proposal], window: int, logits: torch.Tensor) -> Acceptance:
        drafted = [each.token for each in proposals[:window]]
        distributions = [each.distribution for each in proposals[:window]]
        agreed, last = self.sampler.verify(drafted, distributions, logits, self.history)
        # The request is over with the first token that ends it, whatever stands behind it.
        accepted = next((place for place in range(agreed) if drafted[place] in self._ends), agreed)
        next_token = drafted[accepted] if accepted < agreed else last
        self._note([*drafted[:accepted], next_token], logits)
        went_on = agreed == window < len(proposals) and proposals[window].token == last
        return Acceptance(accepted, agreed + went_on, next_token, went_on and next_token not in self._ends)

    def take_logprobs(self) -> list[TokenLogprobs]:
        """Those of the tokens put out since the last call."""
        taken, self._logprobs = self._logprobs, []
        return taken

    def _note(self, tokens: list[int], logits: torch.Tensor) -> None:
        if self._top is not None:
            self._logprobs += logprobs_of(logits, tokens, self._top)

    def advance(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens
