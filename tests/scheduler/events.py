"""Events at random, legal or not."""

from __future__ import annotations

import random

from spmoe.state.events import (
    BatchArrived,
    BatchFailed,
    Computed,
    DraftPredicted,
    Event,
    Forecast,
    GatePredicted,
    HostComputed,
    LayerDone,
    LayerReached,
    LeadStands,
    LinkAwaited,
    PrefillBegun,
    PrefillEnded,
    RequestBegun,
    StepBegun,
    StepEnded,
    TokenDrafted,
)


def some_experts(rng: random.Random, experts: int) -> tuple[int, ...]:
    """Distinct experts of one layer, in any order; maybe none."""
    return tuple(rng.sample(range(experts), rng.randint(0, experts)))


def forecast(rng: random.Random, experts: int) -> Forecast:
    """One token's forecast for one layer."""
    return tuple((expert, rng.randint(0, 65536)) for expert in some_experts(rng, experts))


def one_of_each(rng: random.Random, time: int, layers: int, experts: int) -> tuple[Event, ...]:
    """An event of every type at or just before `time`; the numbers are small, so that many are almost right."""

    def small() -> int:
        return rng.randint(-1, 3)

    def layer() -> int:
        return rng.randint(-1, layers + 1)

    time = max(0, time - (rng.random() < 0.2))
    needed = some_experts(rng, experts)
    return (
        RequestBegun(time, small()),
        PrefillBegun(time, small()),
        PrefillEnded(time),
        StepBegun(time, small()),
        DraftPredicted(time, small(), layer(), ((),)),
        TokenDrafted(time, small(), None),
        LayerReached(time, layer(), needed, (1,) * len(needed)),
        GatePredicted(time, layer(), ()),
        Computed(time, layer(), needed or (0,)),
        HostComputed(time, layer(), rng.randint(0, experts - 1), rng.randint(0, time + 1), rng.randint(0, time + 1)),
        LayerDone(time, layer(), ()),
        BatchArrived(time, rng.randint(-1, 60), rng.randint(0, time + 1), rng.randint(0, time + 1)),
        BatchFailed(time, rng.randint(-1, 60)),
        LinkAwaited(time, layer()),
        LeadStands(time, small()),
        StepEnded(time, small()),
    )
