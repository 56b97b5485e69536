"""The step program: what happens in a draft-then-verify round, written once for all drivers.

A program is a generator.  It yields *effects* (draft this, compute that, wait), is resumed with an `Outcome` (when the
effect began and ended, and what came of it) and reports to the scheduler through `dispatch`.  The
simulator turns effects into SimPy time-outs, the engine into kernels and copies; neither has a loop of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Set
from functools import cache
from typing import Any, NamedTuple

from spmoe.state.commands import DraftAhead, LayerPlan, Reply, Speculate, Verify
from spmoe.state.events import (
    Computed,
    DraftPredicted,
    Event,
    Forecast,
    GatePredicted,
    LayerDone,
    LayerReached,
    LeadStands,
    LinkAwaited,
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


class Shorten(NamedTuple):
    """More was drafted than is verified: the window holds the first `drafted` tokens.  No outcome, and no time."""

    drafted: int


class Attention(NamedTuple):
    """Run the verifier's attention and router of `layer` on the window.  Outcome: `Routed`."""

    layer: int


class Routed(NamedTuple):
    """A router's output for all tokens of the pass."""

    experts: tuple[int, ...]
    """Distinct experts in routing order."""
    tokens: tuple[int, ...]
    """Tokens per expert."""
    next_gate: tuple[Forecast, ...] | None = None
    """Forecasts for the next layer, per token; None where the recipe has no use for them."""
    gates: tuple[Forecast, ...] = ()
    """Gate probabilities, per token; empty where the recipe has no use for them."""


class Compute(NamedTuple):
    """Compute these experts of `layer`, all of them resident.  No outcome."""

    layer: int
    experts: tuple[int, ...]


class HostCompute(NamedTuple):
    """Have the CPU compute these experts of `layer`, in this order, and go on.  No outcome.

    Each counts as landed when its result is there, whether or not its weights arrive meanwhile.
    """

    layer: int
    experts: tuple[int, ...]


class ComputeLanded(NamedTuple):
    """Wait until at least one of these experts of `layer` has landed: its weights are in its slot, or the CPU's result
    is there; then compute those in slots.

    Outcome: the experts, in the order of arrival.  It begins when the wait is over.
    """

    layer: int
    missing: Set[int]
    """Shrinks as they land: the same effect is yielded until none is left."""


class Accept(NamedTuple):
    """Choose the target's next token, and compare those drafted with its own.

    Outcome: how many leading ones stand; none behind a prompt.
    """


class Keep(NamedTuple):
    """After `Accept`: from the window's last token on the draft has read `tokens` tokens.

    Outcome: how many of the next window's tokens it has read so, none where the target's token is another than the one
    that it went on with.
    """

    tokens: int


Effect = DraftLayers | DraftToken | Shorten | Attention | Compute | HostCompute | ComputeLanded | Accept | Keep

Outcome = tuple[int, int, Any]
"""When an effect began and ended (ns), and what came of it.  It begins later than yielded where it had to wait."""

Program = Generator[Effect, Outcome, int]
"""Returns the time at its end."""


class Lead:
    """How many tokens the draft has read from the window's last one on, and how many it may."""

    def __init__(self, most: int, tokens: int) -> None:
        self.most = most
        self.tokens = tokens


def step(dispatch: Dispatch, time: int, limit: int, layers: int, known: int = 0, reach: int = 0) -> Program:
    """One round: draft token by token, verify layer by layer, accept.

    `limit` is the most tokens that may be drafted, `layers` the number of MoE layers, `known` how many of the window's
    tokens the draft has read in the round before, and `reach` how many it may read in all, from the window's first one
    on; where that is less than the window holds, nothing is drafted past it.
    """
    speculate = dispatch(StepBegun(time, limit))
    assert type(speculate) is Speculate
    window, drafted = speculate.gamma, known
    while drafted < window:
        token = drafted
        for first in range(0, speculate.layers, speculate.group):
            end = min(first + speculate.group, speculate.layers)
            _, time, forecasts = yield DraftLayers(token, first, end)
            dispatch(DraftPredicted(time, token, first, forecasts))
        _, time, prob = yield DraftToken(token, speculate.layers)
        enough = dispatch(TokenDrafted(time, token, prob))
        drafted += 1
        if enough is not None:
            assert type(enough) is Verify
            window = enough.drafted
    if drafted > window:
        yield Shorten(window)
    past = Lead(reach - window, drafted - window)
    time = yield from _layers(dispatch, time, layers, past)
    _, time, accepted = yield Accept()
    if past.tokens > 1:
        _, time, stands = yield Keep(past.tokens)
        if stands:
            dispatch(LeadStands(time, stands))
    dispatch(StepEnded(time, accepted))
    return time


def prefill(
    dispatch: Dispatch, time: int, tokens: int, layers: int, touched: tuple[tuple[int, ...], ...] = ()
) -> Program:
    """Read a prompt of `tokens` tokens; `touched` only for recipes that know the future (see `PrefillBegun`)."""
    dispatch(PrefillBegun(time, tokens, touched))
    time = yield from _layers(dispatch, time, layers, Lead(0, 0))
    _, time, _ = yield Accept()
    dispatch(PrefillEnded(time))
    return time


@cache
def _attentions(layers: int) -> tuple[Attention, ...]:
    """One effect per layer: they are the same in every pass."""
    return tuple(map(Attention, range(layers)))


def _layers(dispatch: Dispatch, time: int, layers: int, past: Lead) -> Program:
    """All layers of one forward pass: attention, router, residents, then the missing experts in order of arrival."""
    for layer, attention in enumerate(_attentions(layers)):
        waits: list[tuple[int, int]] = []
        began, reached, (experts, tokens, next_gate, gates) = yield attention
        if began > time:
            waits.append((time, began))
        time = reached
        plan = dispatch(LayerReached(time, layer, experts, tokens, gates))
        assert type(plan) is LayerPlan
        if next_gate is not None:
            dispatch(GatePredicted(time, layer + 1, next_gate))
        hits, missing = plan.hits, {*plan.late, *plan.misses}
        if plan.host:
            yield HostCompute(layer, plan.host)
            hits = tuple([expert for expert in hits if expert not in plan.host])
            missing.update(plan.host)
        if plan.in_order:
            time = yield from _in_order(plan, time, waits)
            dispatch(LayerDone(time, layer, tuple(waits)))
            continue
        if hits:
            began, ended, _ = yield Compute(layer, hits)
            if began > time:
                waits.append((time, began))
            time = ended
            if plan.waves:
                dispatch(Computed(time, layer, hits))
        landing = ComputeLanded(layer, missing)
        while missing:
            if past.tokens < past.most:
                yield from _run_ahead(dispatch, time, layer, layers, past)
            began, ended, landed = yield landing
            if began > time:
                waits.append((time, began))
            time = ended
            missing.difference_update(landed)
            if plan.waves:
                in_slots = tuple([expert for expert in landed if expert not in plan.host])
                if in_slots:
                    dispatch(Computed(time, layer, in_slots))
        dispatch(LayerDone(time, layer, tuple(waits)))
    return time


def _run_ahead(dispatch: Dispatch, time: int, layer: int, layers: int, past: Lead) -> Program:
    """Draft past the window, as long as the scheduler finds that nothing of `layer` is delayed by it."""
    while past.tokens < past.most and (reply := dispatch(LinkAwaited(time, layer))) is not None:
        assert type(reply) is DraftAhead
        token, first, until = reply
        _, time, forecasts = yield DraftLayers(token, first, until)
        dispatch(DraftPredicted(time, token, first, forecasts))
        if until == layers:
            _, time, prob = yield DraftToken(token, until)
            dispatch(TokenDrafted(time, token, prob))
            past.tokens += 1
    return time


def _in_order(plan: LayerPlan, time: int, waits: list[tuple[int, int]]) -> Program:
    """The experts of a layer by ascending id; a hit waits for those before it.  Adds to `waits`."""
    for expert in sorted(plan.hits + plan.late + plan.misses):
        hit = expert in plan.hits
        began, ended, _ = yield Compute(plan.layer, (expert,)) if hit else ComputeLanded(plan.layer, {expert})
        if began > time:
            waits.append((time, began))
        time = ended
    return time
