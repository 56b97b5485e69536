"""Decoding as a trace has it: real models do the work of every pass, and the trace says what came of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch

from engine.decoding.decoder import Popularity, Touched
from engine.decoding.forced_routing import Script
from engine.decoding.sampler import Proposal, Sampler
from engine.decoding.session import Rig
from spmoe.drive.step import Accept
from spmoe.trace.schema import TokenLine
from spmoe.trace.windows import Request

SEED: Final = 0
"""Of the token ids that stand for those of the trace, which tells none."""


class ForcedDecoder:
    """Goes through the requests of a trace on a rig that follows `script`.

    It steps as the simulator does (`sim.machine.driver.Driver`), so that in virtual time both decide the same.
    """

    def __init__(self, rig: Rig, script: Script, popularity: Popularity, touched: Touched) -> None:
        """`popularity` and `touched` as in `Decoder`."""
        self._rig = rig
        self._script = script
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
        # The last of them is the pending token, which the first round reads.
        tokens = self._tokens(request.position + 1)
        prefill = request.prefill
        rig.target.begin()
        if rig.chain is not None:
            rig.chain.begin(self._sampler, lambda token, _: self._script.probability(token))
        if prefill is None and request.position:
            rig.target.skim(tokens[:-1])
        driver.begin(number, self._popularity(number))
        if prefill is not None:
            self._script.prompt(prefill)
            driver.prefill(prefill.prompt_tokens, self._touched(number))
            logits = rig.target.read(self._tokens(prefill.prompt_tokens))
            self._sampler.verify((), (), logits)
            driver.answer(0)
        while lines := request.lines(1 if rig.chain is None else rig.chain.most):
            accepted = self._round(lines, request.position, tokens)
            request.advance(accepted + 1)
            told(accepted + 1)

    def _round(self, lines: Sequence[TokenLine], position: int, tokens: list[int]) -> int:
        """Drafts and verifies behind `tokens`, which it adds to; returns how many drafted tokens stand."""
        target, driver, chain, script = self._rig.target, self._rig.driver, self._rig.chain, self._script
        this = script.round(lines, 0 if chain is None else chain.gamma)
        proposals: list[Proposal] = []
        if chain is None:
            driver.step(position, 0)
        else:
            limit, reach = len(this.whole.inputs) - 1, chain.reach(len(lines))
            driver.step(position, limit, len(chain.proposals), reach, chain.go_on)
            proposals = chain.proposals[: chain.draft(tokens)]
        drafted = [each.token for each in proposals]
        logits = target.verify([tokens[-1], *drafted])
        self._sampler.verify(drafted, [each.distribution for each in proposals], logits)
        accepted = min(this.whole.accepted, len(drafted))
        assert type(driver.asked) is Accept
        driver.answer(accepted)
        target.forget(len(drafted) - accepted)
        tokens += drafted[:accepted]
        follows: int | None = None
        if chain is not None:
            stands = this.right > len(drafted)
            follows = chain.continuation(len(drafted)) if stands else None
            chain.end(len(drafted), len(tokens), stands)
        tokens.append(self._random.randrange(self._vocabulary) if follows is None else follows)
        return accepted

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(self._vocabulary) for _ in range(count)]
