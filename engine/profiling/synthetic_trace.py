"""A trace made up to find out what the parts of a round take: every length of window, experts evenly drawn."""

from __future__ import annotations

import random
from typing import Final

from spmoe.trace.schema import (
    ONE,
    DraftShape,
    ForecastOrigin,
    Header,
    ModelShape,
    PrefillLine,
    Source,
    TokenLine,
    TraceInMemory,
)

PROMPT: Final = 64
"""Tokens of each prompt."""
_AGREEMENT: Final = 0.7
"""Often enough that some rounds stand as a whole, after which the draft reads two tokens, and others do not."""


def exercise(model: ModelShape, draft: DraftShape, requests: int, tokens: int, seed: int = 0) -> TraceInMemory:
    """`requests` requests of `tokens` tokens each behind a prompt that touches every expert.

    A request's first round ends with its first token, so that another one follows however few there are: only then is
    it known what a round took.
    """
    rng = random.Random(seed)
    everyone = tuple(range(model.experts))
    lines: list[PrefillLine | TokenLine] = []
    for request in range(requests):
        lines.append(PrefillLine(request, PROMPT, (everyone,) * model.layers))
        for number in range(tokens):
            routed = tuple(tuple(rng.sample(everyone, model.top_k)) for _ in range(model.layers))
            forecast = tuple(tuple((expert, ONE // model.top_k) for expert in cell) for cell in routed)
            line = TokenLine(
                request,
                PROMPT + number,
                routed,
                rng.random() < _AGREEMENT and number > 0,
                draft_prob=ONE // 2,
                forecasts={"draft": forecast, "next_gate": ((), *forecast[1:])},
            )
            lines.append(line)
    source = Source("synthetic", "an exercise for profiles: experts evenly drawn", "", "engine profile", seed=seed)
    origins = {name: ForecastOrigin("drawn", accuracy=1.0) for name in ("draft", "next_gate")}
    return TraceInMemory(Header(model, draft, source, requests * tokens, origins), lines)
