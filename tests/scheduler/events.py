"""Events at random, legal or not."""

from __future__ import annotations

import random

from hypothesis import strategies as st

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

PROBS = st.integers(0, 65536)


def expert_lists(experts: int, least: int = 0) -> st.SearchStrategy[tuple[int, ...]]:
    """At least so many distinct experts of one layer, in any order."""
    return st.permutations(range(experts)).flatmap(
        lambda order: st.integers(least, experts).map(lambda count: tuple(order[:count]))
    )


def forecasts(experts: int) -> st.SearchStrategy[Forecast]:
    """One token's forecast for one layer."""
    ranked = st.tuples(st.integers(0, experts - 1), PROBS)
    return st.lists(ranked, unique_by=lambda pair: pair[0], max_size=experts).map(tuple)


def one_of_each(rng: random.Random, time: int, layers: int, experts: int) -> tuple[Event, ...]:
    """An event of every type at or just before `time`; the numbers are small, so that many are almost right."""

    def small() -> int:
        return rng.randint(-1, 3)

    def layer() -> int:
        return rng.randint(-1, layers + 1)

    time = max(0, time - (rng.random() < 0.2))
    needed = tuple(rng.sample(range(experts), rng.randint(0, experts)))
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
