"""The bound: what no lossless fetch-only schedule of the same windows can beat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spmoe.machine.cost import CostModel
from spmoe.policy.oracle.belady import Min
from spmoe.policy.parts.future import Requests
from spmoe.trace.windows import windows


@dataclass(frozen=True, slots=True)
class Bound:
    """max(loads x expert bytes / bandwidth, verifier compute), totals over decode, without any latency.

    `loads` is MIN with bypass (see `spmoe.policy.oracle.belady`).  Times in ns.  Of the windows that it is about,
    `widest` is the most experts that one layer needs at once, and `stand_ins` counts tokens after a rejection that
    stood in for unrecorded ones.
    """

    loads: int
    needs: int
    tokens: int
    steps: int
    link_ns: int
    compute_ns: int
    widest: int
    stand_ins: int

    @property
    def loads_per_token(self) -> float:
        """Loads per output token."""
        return self.loads / self.tokens

    @property
    def tpot_ms(self) -> float:
        """The least time per output token."""
        return max(self.link_ns, self.compute_ns) / self.tokens / 1e6

    @property
    def hit_rate(self) -> float | None:
        """Share of needs that MIN finds in its cache."""
        return 1 - self.loads / self.needs if self.needs else None

    @property
    def link_utilisation(self) -> float | None:
        """Share of the bound's time in which the link transfers."""
        return self.link_ns / max(self.link_ns, self.compute_ns)


def bound(requests: Requests, cost: CostModel, lengths: Iterable[int], slots: int) -> Bound:
    """The bound of windows with so many drafted tokens, one after the other, on a cache of `slots`.

    Takes two passes over the trace, and over `lengths`, which has one for every window or goes on forever.
    """
    model = cost.geometry
    cache = Min(requests, lengths, model.layers, model.experts, slots)
    drafted = iter(lengths)
    compute = widest = stand_ins = tokens = steps = 0
    for request in requests():
        if request.prefill is not None:
            cache.refill()
        for window in windows(request, drafted):
            size = len(window.inputs)
            compute += model.layers * cost.layer_ns(size, request.position + size)
            for layer, routing in enumerate(window.routing()):
                cache.visit(layer, routing.experts)
                compute += sum(cost.expert_times(routing.tokens))
                widest = max(widest, len(routing.experts))
            tokens += window.accepted + 1
            stand_ins += window.stand_ins
            steps += 1
    return Bound(
        loads=cache.loads,
        needs=cache.needs,
        tokens=tokens,
        steps=steps,
        link_ns=cache.loads * cost.transfer_ns(model.expert_bytes(cost.bits)),
        compute_ns=compute,
        widest=widest,
        stand_ins=stand_ins,
    )
