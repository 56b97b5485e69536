"""Decoding: a prompt, then rounds of drafting and verifying until the budget is spent or the sequence ends."""

from __future__ import annotations

from collections.abc import Callable, Generator, Set

import torch

from engine.decoding.draft_model import share
from engine.decoding.recorder import Recorder
from engine.decoding.sampler import Proposal, Sampler
from engine.decoding.session import Rig
from spmoe.drive.step import Accept

Popularity = Callable[[int], tuple[int, ...]]
"""For a request, expert keys by how much other requests use them; empty where nobody asks."""

Touched = Callable[[int], tuple[tuple[int, ...], ...]]
"""For a request, the experts that its prompt will touch, per layer; empty where nobody asks."""


class Decoder:
    """Decodes requests one after the other, batch 1."""

    def __init__(self, rig: Rig, popularity: Popularity, touched: Touched, recorder: Recorder | None) -> None:
        self._driver = rig.driver
        self._target = rig.target
        self._draft = rig.draft
        self._chain = rig.chain
        self._chooses = rig.scheduler.config.chooses
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
        self._begin(sampler)
        tokens.append(self._read(prompt, sampler))
        try:
            yield tokens[-1:]
            while (left := budget + len(prompt) - len(tokens)) > 0 and tokens[-1] not in ends:
                new = self._round(tokens, left, ends, sampler)
                tokens += new
                yield new
        except GeneratorExit:
            self._end(tokens)
            raise
        self._end(tokens)

    def _begin(self, sampler: Sampler) -> None:
        self._target.begin()
        if self._chain is not None:
            self._chain.begin(sampler, self._told)
        self._driver.begin(self._requests, self._popularity(self._requests))
        self._requests += 1

    def _told(self, _token: int, proposal: Proposal) -> int:
        """How sure the draft is; where that decides on the length, no word of which token was drawn."""
        return share(proposal.sure if self._chooses else proposal.probability)

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
    def _round(self, tokens: list[int], left: int, ends: Set[int], sampler: Sampler) -> list[int]:
        """Drafts, verifies, and returns what follows `tokens`, of `left` tokens at most that are yet to come."""
        driver, chain, position = self._driver, self._chain, len(tokens) - 1
        proposals: list[Proposal] = []
        if chain is None:
            driver.step(position, 0)
        else:
            # A token drawn in the round before must not be verified or not by what it has brought about since.
            reach = 0 if self._chooses and not sampler.greedy else chain.reach(left)
            driver.step(position, min(chain.gamma, left - 1), len(chain.proposals), reach, chain.go_on)
            proposals = chain.proposals[: chain.draft(tokens)]
        drafted = [each.token for each in proposals]
        logits = self._target.verify([tokens[-1], *drafted])
        agreed, last = sampler.verify(drafted, [each.distribution for each in proposals], logits)
        # The round is over with the first token that ends the sequence, whatever stands behind it.
        accepted = next((place for place in range(agreed) if drafted[place] in ends), agreed)
        new = [*drafted[:accepted], drafted[accepted] if accepted < agreed else last]
        assert type(driver.asked) is Accept
        driver.answer(accepted)
        self._target.forget(len(drafted) - accepted)
        kept = 0
        if chain is not None:
            went_on = agreed == len(drafted) and chain.continuation(agreed) == last
            agreed += went_on
            kept = chain.end(len(drafted), len(tokens) + accepted, went_on and new[-1] not in ends)
        if self._recorder is not None:
            self._recorder.step(position, len(drafted) + 1, accepted, agreed, kept)
        return new
