"""Small traces with everything that a trace may have, and what to run them on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import strategies as st

from spmoe.trace.schema import (
    DraftShape,
    ForecastOrigin,
    Forecasts,
    Header,
    ModelShape,
    PrefillLine,
    RejectedLine,
    Source,
    TokenLine,
    TraceInMemory,
    TraceLine,
)

DRAFT = DraftShape("tiny-draft", params=1_000, active_params=1_000, kv_bytes_per_token=2)


@dataclass(frozen=True, slots=True, repr=False)
class Case:
    """A trace and the setting to run it in; `bandwidth` of the link in bytes/s.

    With `chooses`, recipes that can choose the length of their drafts do so, up to `gamma`.

    An expert has 8 MB at 16 bits, so a load takes between 0.04 ms and 80 ms: from much less to much more than a layer.
    """

    trace: TraceInMemory
    slots: int
    gamma: int
    cutoff: int
    bandwidth: int
    chooses: bool = False

    def __repr__(self) -> str:
        made, own = self.trace.header.source.how, ("slots", "gamma", "cutoff", "bandwidth", "chooses")
        return f"Case({made}, {', '.join(f'{name}={getattr(self, name)!r}' for name in own)})"

    @property
    def layers(self) -> int:
        return self.trace.header.model.layers

    @property
    def experts(self) -> int:
        return self.trace.header.model.experts


def make_trace(
    seed: int,
    layers: int,
    experts: int,
    top_k: int,
    lengths: list[int],
    prefills: bool = True,
    agreement: float = 0.7,
    empty: float = 0.1,
) -> TraceInMemory:
    """A trace drawn at random: `lengths` token lines per request, a share `empty` of the cells missing."""
    made = f"make_trace({seed}, {layers}, {experts}, {top_k}, {lengths}, {prefills}, {agreement}, {empty})"
    rng = random.Random(seed)
    lines: list[TraceLine] = []
    for request, length in enumerate(lengths):
        if prefills and rng.random() < 0.6:
            touched = tuple(tuple(sorted(_some(rng, experts, rng.randint(0, experts)))) for _ in range(layers))
            lines.append(PrefillLine(request, rng.randint(1, 9), touched))
        for position in range(length):
            agree = rng.random() < agreement
            rejected = [] if agree else [_rejected(rng, layers, experts, top_k) for _ in range(rng.randint(0, 4))]
            routed = tuple(_cell(rng, experts, top_k, empty) for _ in range(layers))
            prob = rng.choice([None, rng.randint(0, 65536)])
            forecasts = _forecasts(rng, layers, experts)
            lines.append(
                TokenLine(request, position, routed, agree, prob, forecasts=forecasts, rejected=tuple(rejected))
            )
    header = Header(
        ModelShape("tiny", layers, experts, top_k, expert_params=4_000_000, dense_params=10_000, kv_bytes_per_token=8),
        DRAFT,
        Source("synthetic", "a test", "", made),
        tokens=sum(lengths),
        forecasts={"draft": ForecastOrigin("drawn"), "next_gate": ForecastOrigin("drawn")},
        empty_cells=sum(line.routed.count(()) for line in lines if isinstance(line, TokenLine)),
    )
    return TraceInMemory(header, lines)


@st.composite
def cases(draw: st.DrawFn, max_layers: int = 4, max_lines: int = 9) -> Case:
    """Traces of up to three requests, from one slot to all."""
    layers = draw(st.integers(1, max_layers))
    experts = draw(st.integers(2, 6))
    trace = make_trace(
        seed=draw(st.integers(0, 2**20)),
        layers=layers,
        experts=experts,
        top_k=draw(st.integers(1, 2)),
        lengths=draw(st.lists(st.integers(1, max_lines), min_size=1, max_size=3)),
        agreement=draw(st.sampled_from([0.0, 0.7, 1.0])),
        empty=draw(st.sampled_from([0.0, 0.2])),
    )
    slots = draw(st.one_of(st.integers(1, 3), st.integers(1, layers * experts)))
    return Case(
        trace=trace,
        slots=min(slots, layers * experts),
        gamma=draw(st.integers(0, 4)),
        cutoff=draw(st.integers(0, layers)),
        bandwidth=draw(st.sampled_from([10**8, 10**9, 10**10, 2 * 10**11])),
        chooses=draw(st.booleans()),
    )


def named_cases() -> Iterator[tuple[str, Case]]:
    """The cases that are always run."""
    three = make_trace(1, layers=4, experts=8, top_k=2, lengths=[30, 12, 21])
    yield "half the experts", Case(three, slots=16, gamma=4, cutoff=3, bandwidth=10**10)
    yield "a link that never keeps up", Case(three, slots=16, gamma=4, cutoff=4, bandwidth=10**8)
    yield "a link that is never busy", Case(three, slots=16, gamma=2, cutoff=4, bandwidth=2 * 10**11)
    yield "one slot", Case(three, slots=1, gamma=4, cutoff=4, bandwidth=10**10)
    yield "a slot per layer", Case(three, slots=4, gamma=3, cutoff=4, bandwidth=10**10)
    yield "no speculation", Case(three, slots=11, gamma=0, cutoff=0, bandwidth=10**9)
    yield "everything fits", Case(three, slots=32, gamma=4, cutoff=4, bandwidth=10**9)
    wide = make_trace(2, layers=2, experts=16, top_k=4, lengths=[25, 25], agreement=0.2, empty=0.0)
    yield "a window bigger than the cache", Case(wide, slots=6, gamma=4, cutoff=2, bandwidth=10**10)
    narrow = make_trace(7, layers=2, experts=2, top_k=1, lengths=[40, 40], agreement=0.5)
    yield "prefetches that are gone before their layer", Case(narrow, slots=1, gamma=1, cutoff=2, bandwidth=2 * 10**11)
    gaps = make_trace(3, layers=3, experts=4, top_k=2, lengths=[10, 1, 14], empty=0.6)
    yield "mostly missing cells", Case(gaps, slots=5, gamma=4, cutoff=2, bandwidth=10**9)


def _some(rng: random.Random, experts: int, count: int) -> tuple[int, ...]:
    return tuple(rng.sample(range(experts), min(count, experts)))


def _cell(rng: random.Random, experts: int, top_k: int, empty: float) -> tuple[int, ...]:
    return () if rng.random() < empty else _some(rng, experts, top_k)


def _forecast(rng: random.Random, experts: int) -> tuple[tuple[int, int], ...]:
    chosen = _some(rng, experts, rng.randint(0, experts))
    return tuple((expert, rng.randint(0, 65536 // len(chosen))) for expert in chosen)


def _forecasts(rng: random.Random, layers: int, experts: int) -> Forecasts:
    return {
        name: tuple(_forecast(rng, experts) for _ in range(layers))
        for name in ("draft", "next_gate")
        if rng.random() < 0.9
    }


def _rejected(rng: random.Random, layers: int, experts: int, top_k: int) -> RejectedLine:
    routed = tuple(_cell(rng, experts, top_k, 0.0) for _ in range(layers))
    return RejectedLine(routed, _forecasts(rng, layers, experts), rng.choice([None, 7]))
