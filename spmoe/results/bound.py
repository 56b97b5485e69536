"""The bound: what no lossless fetch-only schedule of the same windows can beat."""

from __future__ import annotations

from dataclasses import dataclass

from spmoe.machine.cost import CostModel
from spmoe.policy.belady import Requests, min_loads
from spmoe.trace.windows import fixed_windows


@dataclass(frozen=True, slots=True)
class Bound:
    """max(loads x expert bytes / bandwidth, verifier compute), totals over decode, without any latency.

    `loads` is MIN with bypass (see `spmoe.policy.belady`).  Times in ns.  Of the windows that it is about, `widest` is
    the most experts that one layer needs at once, and `stand_ins` counts tokens after a rejection that stood in for
    unrecorded ones.
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


def bound(requests: Requests, cost: CostModel, gamma: int, slots: int) -> Bound:
    """The bound of windows with `gamma` drafted tokens on a cache of `slots`; takes three passes over the trace."""
    model = cost.geometry
    least = min_loads(requests, gamma, model.layers, model.experts, slots)
    compute = widest = stand_ins = 0
    for request in requests():
        for window in fixed_windows(request, gamma):
            tokens = len(window.inputs)
            stand_ins += window.stand_ins
            compute += model.layers * cost.layer_ns(tokens, request.position + tokens)
            for routing in window.routing():
                compute += sum(map(cost.expert_ns, routing.tokens))
                widest = max(widest, len(routing.experts))
    link = least.loads * cost.transfer_ns(model.expert_bytes(cost.bits))
    return Bound(
        loads=least.loads,
        needs=least.needs,
        tokens=least.tokens,
        steps=least.steps,
        link_ns=link,
        compute_ns=compute,
        widest=widest,
        stand_ins=stand_ins,
    )
