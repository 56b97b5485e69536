"""The cost model of a pair whose parts were timed on the machine: curves in place of rooflines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from spmoe.machine.cost import CostModel
from spmoe.machine.cost_items import CostItem
from spmoe.machine.geometry import DraftModel, Geometry
from spmoe.machine.hardware import Hardware
from spmoe.machine.timings import Timings
from spmoe.machine.units import format_ms

_MEASURED: Final = "measured with this model on this machine"


def cost_model(geometry: Geometry, hardware: Hardware, bits: float, draft: DraftModel | None) -> CostModel:
    """The cost model of `geometry` at `bits` per weight: by what was measured with that very pair, where the profile
    holds it, else by the machine's figures."""
    timings = hardware.timings
    if timings is not None and timings.fit(geometry.name, draft.name if draft else None, bits):
        return MeasuredCost(geometry, hardware, bits, draft, timings)
    return CostModel(geometry, hardware, bits, draft)


class MeasuredCost(CostModel):
    """As `CostModel`, by `Timings`.

    The context's length is not told apart: it is that of the measurement.  Loads and all else about the link follow the
    profile's section on it, slowed down as loads are beside a run.
    """

    __slots__ = ("_timings",)

    blind = True

    def __init__(
        self, geometry: Geometry, hardware: Hardware, bits: float, draft: DraftModel | None, timings: Timings
    ) -> None:
        self._timings = timings
        super().__init__(geometry, hardware, bits, draft)

    def layer_ns(self, tokens: int, context: int) -> int:
        return self._mean(self._timings.layer.ns(tokens))

    def entry_ns(self) -> int:
        return self._mean(self._timings.entry)

    def round_ns(self, tokens: int) -> int:
        return self._mean(self._timings.round.ns(tokens))

    def forecast_ns(self, layers: int) -> int:
        return self._mean(layers * self._timings.forecast)

    def landing_ns(self, loads: int) -> int:
        return self._mean(loads * self._timings.landing)

    def cold_ns(self) -> int:
        return self._mean(self._timings.cold)

    def result_ns(self) -> int:
        return self._mean(self._timings.result)

    def draft_landing_ns(self, loads: int) -> int:
        return self._mean(loads * self._timings.draft_landing)

    def gate_readback_ns(self, tokens: int, next_gate: bool, gates: bool) -> int:
        timings = self._timings
        return self._mean(
            (timings.next_gate.ns(tokens) if next_gate else 0) + (timings.gates.ns(tokens) if gates else 0)
        )

    def decision_ns(self, policy: str) -> int:
        return self._timings.decisions.get(policy, 0)

    def notice_ns(self) -> int:
        return self._mean(self._timings.notice)

    def transfer_ns(self, size: int) -> int:
        slowed = super().transfer_ns(size) * self._timings.transfer
        return -(-slowed.numerator // slowed.denominator)

    def handover_ns(self) -> int:
        return self._timings.handover

    def draft_token_ns(self, read: int = 1) -> int:
        if self.draft is None:
            return super().draft_token_ns(read)
        assert self._timings.draft_token is not None
        return self._mean(self._timings.draft_token.ns(read))

    def draft_layers_ns(self, first: int, end: int, read: int = 1) -> int:
        if self.draft is None:
            return 0
        token, layers = self.draft_token_ns(read), self.geometry.layers
        return token * end // layers - token * first // layers

    def explain(self, tokens: int, context: int, tokens_per_expert: Sequence[int]) -> tuple[CostItem, ...]:
        timings, size = self._timings, self.geometry.expert_bytes(self.bits)
        link = self.hardware.link
        counts = sorted({n for n in tokens_per_expert if n > 0})
        items = [CostItem(f"layer: attention and router, tokens = {tokens}", self.layer_ns(tokens, context), _MEASURED)]
        for count in counts:
            times = tokens_per_expert.count(count)
            name = f"layer: {times} x expert, tokens = {count}"
            items.append(CostItem(name, times * self.expert_ns(count), f"each {format_ms(self.expert_ns(count))}"))
        moved = f"{format_ms(link.latency_ns)} latency + {size / 1e6:,.3f} MB at {link.bandwidth / 1e9:,.2f} GB/s"
        items.append(CostItem("load of one expert", self.load_ns(), moved))
        if timings.host_expert is not None:
            items += [CostItem(f"expert on the CPU, tokens = {n}", self.host_expert_ns(n), _MEASURED) for n in counts]
        if self.draft is not None:
            items.append(CostItem("draft token", self.draft_token_ns(), _MEASURED))
        items += [
            CostItem("first layer besides", self.entry_ns(), _MEASURED),
            CostItem(f"between rounds, tokens = {tokens}", self.round_ns(tokens), _MEASURED),
            CostItem("each arrival of one expert", self.landing_ns(1), "what it costs the thread that drives the run"),
            CostItem("behind a layer with waits", self.cold_ns(), "what follows takes longer"),
            CostItem("each result of the CPU", self.result_ns(), "the same"),
        ]
        return tuple(items)

    def _resident_expert_ns(self, tokens: int) -> int:
        return self._mean(self._timings.expert.ns(tokens))

    def _host_expert_ns(self, tokens: int) -> int:
        curve = self._timings.host_expert
        return super()._host_expert_ns(tokens) if curve is None else self._mean(curve.ns(tokens))

    def _mean(self, median: int) -> int:
        """What takes `median` ns in the median takes longer on average; rounded up."""
        jitter = self._timings.jitter
        return -(-median * jitter.numerator // jitter.denominator)
