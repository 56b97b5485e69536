"""Decoding as a trace has it: real models do the work of every pass, and the trace says what came of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch

from engine.decode import Popularity, Touched
from engine.rig import Rig
from engine.sampling import Proposal, Sampler
from engine.script import Script
from spmoe.step import Accept, DraftLayers, DraftToken
from spmoe.trace.windows import Request, window

SEED: Final = 0
"""Of the token ids that stand for those of the trace, which tells none."""


class ForcedDecoder:
    """Goes through the requests of a trace on a rig that follows `script`.

    It steps as the simulator does (`sim.driver.Driver`), so that in virtual time both decide the same.
    """

    def __init__(self, rig: Rig, script: Script, gamma: int, popularity: Popularity, touched: Touched) -> None:
        """`gamma`: the most tokens to draft in a round; `popularity` and `touched` as in `Decoder`."""
        assert rig.draft is not None or not gamma
        self._rig = rig
        self._script = script
        self._gamma = gamma
        self._popularity = popularity
        self._touched = touched
        self._vocabulary = rig.vocabulary
        self._sampler = Sampler(0.0, None, self._vocabulary)
        self._random = random.Random(SEED)

    @torch.inference_mode()
    def run(self, requests: Iterator[Request], told: Callable[[int], Any] = lambda tokens: None) -> None:
        """Decodes them all; `told` hears how many tokens each round put out.

        Raises ValueError where the trace lacks routing, and what the scheduler and the models raise.
        """
        for request in requests:
            self._decode(request, told)
        self._rig.driver.finish()

    def _decode(self, request: Request, told: Callable[[int], Any]) -> None:
        rig, number = self._rig, request.number
        driver = rig.driver
        lines = request.lines(self._gamma + 1)
        # The last of them is the pending token, which the first round reads.
        tokens = self._tokens(request.position + 1)
        prefill = request.prefill
        rig.target.begin()
        if rig.draft is not None:
            rig.draft.begin()
        if prefill is None and request.position:
            rig.target.skim(tokens[:-1])
        driver.begin(number, self._popularity(number))
        if prefill is not None:
            self._script.prompt(prefill)
            driver.prefill(prefill.prompt_tokens, self._touched(number))
            logits = rig.target.read(self._tokens(prefill.prompt_tokens))
            self._sampler.verify((), (), logits)
            driver.answer(0)
        while lines:
            accepted = self._round(request, tokens)
            request.advance(accepted + 1)
            told(accepted + 1)
            lines = request.lines(self._gamma + 1)

    def _round(self, request: Request, tokens: list[int]) -> int:
        """Drafts and verifies behind `tokens`, which it adds to; returns how many drafted tokens stand."""
        rig, driver = self._rig, self._rig.driver
        whole = window(request.lines(self._gamma + 1), self._gamma)
        self._script.window(whole.inputs)
        driver.step(request.position, len(whole.inputs) - 1)
        proposals: list[Proposal] = []
        while type(driver.asked) in (DraftLayers, DraftToken):
            assert rig.draft is not None
            proposals.append(rig.draft.propose([*tokens, *(each.token for each in proposals)], self._sampler))
        drafted = [each.token for each in proposals]
        logits = rig.target.verify([tokens[-1], *drafted])
        self._sampler.verify(drafted, [each.distribution for each in proposals], logits)
        accepted = min(whole.accepted, len(drafted))
        assert type(driver.asked) is Accept
        driver.answer(accepted)
        rig.target.forget(len(drafted) - accepted)
        if rig.draft is not None:
            rig.draft.forget(len(tokens) + accepted)
        tokens += [*drafted[:accepted], self._random.randrange(self._vocabulary)]
        return accepted

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(self._vocabulary) for _ in range(count)]
