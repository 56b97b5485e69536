"""The step program: what happens in a draft-then-verify round, written once for all drivers.

A program is a generator.  It yields *effects* (draft this, compute that, wait), is resumed with an `Outcome` (the time
at which the effect was over, and what came of it) and tells the scheduler through `dispatch` what happened.  The
simulator turns effects into SimPy time-outs, the engine into kernels and copies; neither has a loop of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Set
from functools import cache
from typing import Any, NamedTuple

from spmoe.state.commands import LayerPlan, Reply, Speculate
from spmoe.state.events import (
    Computed,
    DraftPredicted,
    Event,
    Forecast,
    GatePredicted,
    LayerDone,
    LayerReached,
    PrefillBegun,
    PrefillEnded,
    StepBegun,
    StepEnded,
    TokenDrafted,
)

Dispatch = Callable[[Event], Reply | None]
"""Hands an event to the scheduler, lets the link have the submissions, and returns the reply to the program."""


class DraftLayers(NamedTuple):
    """Run the draft through layers `first` to `end` (exclusive) on its token `token`.  Outcome: their forecasts."""

    token: int
    first: int
    end: int


class DraftToken(NamedTuple):
    """Run the draft from `first_layer` to its end.  Outcome: the probability of the proposed token (/65536) or None."""

    token: int
    first_layer: int


class Attention(NamedTuple):
    """Run the verifier's attention and router of `layer` on the window.  Outcome: `Routed`."""

    layer: int


Routed = tuple[tuple[int, ...], tuple[int, ...], tuple[Forecast, ...] | None]
"""What a router said: distinct experts in routing order, tokens per expert, forecasts for the next layer or None."""


class Compute(NamedTuple):
    """Compute these experts of `layer`, all of them resident.  No outcome."""

    layer: int
    experts: tuple[int, ...]


class ComputeLanded(NamedTuple):
    """Wait until at least one of these missing experts of `layer` is in its slot, then compute those that are.

    Outcome: when the wait was over (the time at which the effect began, if there was none), and the experts, in the
    order of arrival.
    """

    layer: int
    missing: Set[int]
    """Shrinks as they compute: the same effect is yielded until none is left."""


class Accept(NamedTuple):
    """Compare the drafted tokens with the target's.  Outcome: how many leading ones stand."""


Effect = DraftLayers | DraftToken | Attention | Compute | ComputeLanded | Accept

Outcome = tuple[int, Any]
"""When an effect was over (ns), and what came of it."""

Program = Generator[Effect, Outcome, int]
"""Returns the time at its end."""


def step(dispatch: Dispatch, time: int, limit: int, layers: int) -> Program:
    """One round: draft token by token, verify layer by layer, accept.

    `limit` is the most tokens that may be drafted, `layers` the number of MoE layers.
    """
    speculate = dispatch(StepBegun(time, limit))
    assert type(speculate) is Speculate
    for token in range(speculate.gamma):
        for first in range(0, speculate.layers, speculate.group):
            end = min(first + speculate.group, speculate.layers)
            time, forecasts = yield DraftLayers(token, first, end)
            dispatch(DraftPredicted(time, token, first, forecasts))
        time, prob = yield DraftToken(token, speculate.layers)
        dispatch(TokenDrafted(time, token, prob))
    time = yield from _layers(dispatch, time, layers)
    time, accepted = yield Accept()
    dispatch(StepEnded(time, accepted))
    return time


def prefill(
    dispatch: Dispatch, time: int, tokens: int, layers: int, touched: tuple[tuple[int, ...], ...] = ()
) -> Program:
    """Read a prompt of `tokens` tokens; `touched` only for recipes that know the future (see `PrefillBegun`)."""
    dispatch(PrefillBegun(time, tokens, touched))
    time = yield from _layers(dispatch, time, layers)
    dispatch(PrefillEnded(time))
    return time


@cache
def _attentions(layers: int) -> tuple[Attention, ...]:
    """One effect per layer: they are the same in every pass."""
    return tuple(map(Attention, range(layers)))


def _layers(dispatch: Dispatch, time: int, layers: int) -> Program:
    """All layers of one forward pass: attention, router, residents, then the missing experts in order of arrival."""
    for layer, attention in enumerate(_attentions(layers)):
        time, (experts, tokens, next_gate) = yield attention
        plan = dispatch(LayerReached(time, layer, experts, tokens))
        assert type(plan) is LayerPlan
        if next_gate is not None:
            dispatch(GatePredicted(time, layer + 1, next_gate))
        if plan.hits:
            time, _ = yield Compute(layer, plan.hits)
            if plan.waves:
                dispatch(Computed(time, layer, plan.hits))
        missing = {*plan.late, *plan.misses}
        waits: tuple[tuple[int, int], ...] = ()
        landing = ComputeLanded(layer, missing)
        while missing:
            since = time
            time, (until, landed) = yield landing
            missing.difference_update(landed)
            if until > since:
                waits += ((since, until),)
            if plan.waves:
                dispatch(Computed(time, layer, landed))
        dispatch(LayerDone(time, layer, waits))
    return time
