"""Decoding: a prompt, then rounds of drafting and verifying until the budget is spent or the sequence ends."""

from __future__ import annotations

from collections.abc import Callable, Generator, Set

import torch

from engine.drafting import Draft
from engine.driver import Driver
from engine.record import Recorder
from engine.sampling import Proposal, Sampler
from engine.target import Target
from spmoe.step import Accept, DraftLayers, DraftToken

Popularity = Callable[[int], tuple[int, ...]]
"""For a request, expert keys by how much other requests use them; empty where nobody asks."""

Touched = Callable[[int], tuple[tuple[int, ...], ...]]
"""For a request, the experts that its prompt will touch, per layer; empty where nobody asks."""


class Decoder:
    """Decodes requests one after the other, batch 1."""

    def __init__(
        self,
        driver: Driver,
        target: Target,
        draft: Draft | None,
        gamma: int,
        popularity: Popularity,
        touched: Touched,
        recorder: Recorder | None,
    ) -> None:
        """`gamma`: the most tokens to draft in a round."""
        self._driver = driver
        self._target = target
        self._draft = draft
        self._gamma = gamma
        self._popularity = popularity
        self._touched = touched
        self._recorder = recorder
        self._requests = 0

    def run(self, prompt: list[int], budget: int, ends: Set[int], sampler: Sampler) -> Generator[list[int], None, None]:
        """The tokens put out, as they come: one behind the prompt, then those of each round.

        At most `budget` >= 1 in all; the first of `ends` is the last.  The run may be left between two of them: what
        came until then is recorded.
        """
        tokens = list(prompt)
        self._begin()
        tokens.append(self._read(prompt, sampler))
        try:
            yield tokens[-1:]
            while (left := budget + len(prompt) - len(tokens)) > 0 and tokens[-1] not in ends:
                new = self._round(tokens, min(self._gamma, left - 1), ends, sampler)
                tokens += new
                yield new
        except GeneratorExit:
            self._end(tokens)
            raise
        self._end(tokens)

    def _begin(self) -> None:
        self._target.begin()
        if self._draft is not None:
            self._draft.begin()
        self._driver.begin(self._requests, self._popularity(self._requests))
        self._requests += 1

    @torch.inference_mode()
    def _end(self, tokens: list[int]) -> None:
        if self._recorder is not None:
            self._recorder.end(tokens, self._draft.review if self._draft else None)

    @torch.inference_mode()
    def _read(self, prompt: list[int], sampler: Sampler) -> int:
        """Reads the prompt; returns the token that follows."""
        request = self._requests - 1
        self._driver.prefill(len(prompt), self._touched(request))
        logits = self._target.read(prompt)
        token = sampler.verify((), (), logits).next_token
        if self._recorder is not None:
            self._recorder.begin(request, len(prompt))
        self._driver.answer(0)
        return token

    @torch.inference_mode()
    def _round(self, tokens: list[int], limit: int, ends: Set[int], sampler: Sampler) -> list[int]:
        """Drafts, verifies, and returns what follows `tokens`."""
        driver, position = self._driver, len(tokens) - 1
        driver.step(position, limit)
        proposals: list[Proposal] = []
        while type(driver.asked) in (DraftLayers, DraftToken):
            assert self._draft is not None
            proposals.append(self._draft.propose([*tokens, *(each.token for each in proposals)], sampler))
        drafted = [each.token for each in proposals]
        logits = self._target.verify([tokens[-1], *drafted])
        agreed, last = sampler.verify(drafted, [each.distribution for each in proposals], logits)
        # The round is over with the first token that ends the sequence, whatever stands behind it.
        accepted = next((place for place in range(agreed) if drafted[place] in ends), agreed)
        new = [*drafted[:accepted], drafted[accepted] if accepted < agreed else last]
        if self._recorder is not None:
            self._recorder.step(position, len(drafted) + 1, accepted, agreed)
        assert type(driver.asked) is Accept
        driver.answer(accepted)
        self._target.forget(len(drafted) - accepted)
        if self._draft is not None:
            self._draft.forget(len(tokens) + accepted)
        return new
