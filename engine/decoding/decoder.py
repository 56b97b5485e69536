"""Decoding: a prompt, then rounds of drafting and verifying until the request is over."""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch

from engine.decoding.passes import PromptPass, RoundPass
from engine.decoding.recorder import Recorder
from engine.decoding.request import Request, RoundLimits
from engine.decoding.session import Session

Popularity = Callable[[int], tuple[int, ...]]
"""For a request, expert keys by how much other requests use them; empty where no policy needs them."""

Touched = Callable[[int], tuple[tuple[int, ...], ...]]
"""For a request, the experts that its prompt will touch, per layer; empty where no policy needs them."""


class Decoder:
    """Decodes requests one after the other, batch 1."""

    def __init__(
        self, session: Session, popularity: Popularity, touched: Touched, recorder: Recorder | None = None
    ) -> None:
        self._driver = session.driver
        self._target = session.target
        self._drafter = session.drafter
        self._popularity = popularity
        self._touched = touched
        self._recorder = recorder
        self.prompt_tokens = 0
        """Of all requests so far."""
        self.kept_tokens = 0
        """Of those the ones that were in the context already."""

    def run(self, request: Request) -> Generator[list[int], None, None]:
        """The tokens put out, as they come: behind the prompt, then those of each round.

        The run may be left between two of them: what came until then is recorded.  torch's modes are those of the
        caller whenever it yields.
        """
        try:
            if new := self._begin(request):
                yield new
            while (limits := request.next_round()) is not None:
                yield self._round(request, limits)
        except GeneratorExit:
            self._end(request)
            raise
        self._end(request)

    @torch.inference_mode()
    def _begin(self, request: Request) -> list[int]:
        """Reads the prompt, if there is one; returns the token put out."""
        self._target.begin(request.prompt if request.keeps_context else ())
        if self._drafter is not None:
            self._drafter.begin(request)
        self.prompt_tokens += len(request.prompt)
        self.kept_tokens += self._target.context
        if request.skipped:
            self._target.skim(request.skipped)
        self._driver.begin(request.number, self._popularity(request.number))
        if not request.prompt:
            return []
        with PromptPass(self._target, request) as prompt:
            self._driver.prefill(prompt, self._touched(request.number))
        if self._recorder is not None:
            self._recorder.begin(request.number, prompt.tokens)
        return prompt.new

    @torch.inference_mode()
    def _round(self, request: Request, limits: RoundLimits) -> list[int]:
        """Drafts and verifies; returns the tokens put out."""
        position = request.position
        drafted, known = limits.drafted, 0
        if self._drafter is not None:
            drafted, known = self._drafter.most(drafted), len(self._drafter.proposals)
        with RoundPass(self._target, self._drafter, request) as this:
            self._driver.step(this, drafted, known, limits.reach)
            new = this.end()
        if self._recorder is not None:
            self._recorder.step(position, this.tokens, this.acceptance.accepted, this.acceptance.agreed, this.kept)
        return new

    @torch.inference_mode()
    def _end(self, request: Request) -> None:
        if self._recorder is not None:
            self._recorder.end(request.tokens, None if self._drafter is None else self._drafter.review)
