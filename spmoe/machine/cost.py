"""How long everything takes: an itemised model in whole nanoseconds, each item rounded up once.

`CostModel.explain` shows the numbers with the figures they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from spmoe.errors import InputError
from spmoe.machine.cost_items import CostItem, draft_item
from spmoe.machine.geometry import DraftModel, Geometry
from spmoe.machine.hardware import Hardware
from spmoe.machine.roofline import Roofline
from spmoe.machine.units import ceil_ns, format_ms

# Experts' times are tabulated for fewer tokens than this: more than any window, so that only a prefill goes past it.
_TABLE: Final = 256


class CostModel:
    """The times of one model, at `bits` per weight, on one machine.

    All methods return whole nanoseconds.  `tokens` are those computed together (a window, or a prompt), `context` the
    positions whose keys and values are read.  The dense weights are spread evenly over the MoE layers: embeddings,
    output head and dense layers count there too, and every key and value is read, as if no layer had a window.
    `draft` is None for runs that draft nothing.
    """

    __slots__ = (
        "_attention",
        "_draft_token",
        "_draft_until",
        "_expert",
        "_expert_table",
        "_host_table",
        "_load_ns",
        "_router",
        "bits",
        "draft",
        "geometry",
        "hardware",
    )

    blind = False
    """Whether what arrives while a layer's attention is computed, or tokens are chosen, is known at the end of that
    only: as it is where one thread drives the run.  Here whoever drives knows all at once."""

    def __init__(self, geometry: Geometry, hardware: Hardware, bits: float, draft: DraftModel | None) -> None:
        self.geometry = geometry
        self.hardware = hardware
        self.bits = bits
        self.draft = draft
        gpu, layers, router = hardware.gpu, geometry.layers, geometry.router_params
        self._attention = Roofline(
            # The routers are part of the dense weights: taken out here, so that no weight is read twice.
            max(0, geometry.dense_params - layers * router),
            bits,
            gpu.bandwidth,
            gpu.flops,
            parts=layers,
            kv_bytes=geometry.kv_bytes_per_token,
        )
        self._router = Roofline(router, bits, gpu.bandwidth, gpu.flops)
        self._expert = Roofline(geometry.expert_params, bits, gpu.bandwidth, gpu.flops)
        self._expert_table = (0, *map(self._resident_expert_ns, range(1, _TABLE)))
        self._host_table = (0, *map(self._host_expert_ns, range(1, _TABLE))) if hardware.cpu else ()
        self._load_ns = self.batch_ns(1, geometry.expert_bytes(bits))
        self._draft_token = draft_item(draft, hardware, bits).ns if draft else 0
        self._draft_until = tuple(self._draft_token * k // layers for k in range(layers + 1))

    def attention_ns(self, tokens: int, context: int) -> int:
        """One layer's dense weights (without its router) and the keys and values of `context` positions."""
        return self._attention.ns(tokens, context)

    def router_ns(self, tokens: int) -> int:
        """One layer's router: hidden x experts weights."""
        return self._router.ns(tokens)

    def overhead_ns(self) -> int:
        """One layer's fixed cost: launches and small kernels."""
        return self.hardware.gpu.layer_overhead_ns

    def layer_ns(self, tokens: int, context: int) -> int:
        """One layer up to its experts: attention, router and overhead."""
        return self.attention_ns(tokens, context) + self.router_ns(tokens) + self.overhead_ns()

    def expert_ns(self, tokens: int) -> int:
        """One expert on the GPU for the `tokens` routed to it; 0 without tokens."""
        if 0 <= tokens < _TABLE:
            return self._expert_table[tokens]
        return self._resident_expert_ns(tokens)

    def expert_times(self, tokens: Sequence[int]) -> list[int]:
        """`expert_ns` of several experts, for as many tokens each; faster than asking one by one."""
        try:
            return list(map(self._expert_table.__getitem__, tokens))
        except IndexError:
            return list(map(self.expert_ns, tokens))

    def host_expert_ns(self, tokens: int) -> int:
        """One expert on the CPU, all cores, for the `tokens` routed to it; 0 without tokens.

        Raises InputError where the hardware profile has no CPU.
        """
        if 0 <= tokens < len(self._host_table):
            return self._host_table[tokens]
        return self._host_expert_ns(tokens)

    def load_ns(self) -> int:
        """One expert moved to the GPU, alone."""
        return self._load_ns

    def transfer_ns(self, size: int) -> int:
        """`size` bytes over the link, without latency."""
        return ceil_ns(size, self.hardware.link.bandwidth)

    def batch_ns(self, copies: int, size: int) -> int:
        """One submission of `copies` >= 1 separate copies, `size` bytes in all."""
        link = self.hardware.link
        return link.latency_ns + (copies - 1) * link.copy_ns + self.transfer_ns(size)

    def entry_ns(self) -> int:
        """What the first layer of a pass takes besides: nothing here, as embeddings are spread over the layers."""
        return 0

    def round_ns(self, tokens: int) -> int:
        """Choosing what a round that verified `tokens` puts out, and all else between two rounds: nothing here, as the
        output head is spread over the layers."""
        return 0

    def forecast_ns(self, layers: int) -> int:
        """What forecasts for so many layers add to a draft token: nothing here, since routers are small."""
        return 0

    def landing_ns(self, loads: int) -> int:
        """By how much the arrival of so many loads at once delays what the GPU is given to compute."""
        return 0

    def cold_ns(self) -> int:
        """By how much longer the work behind a layer takes in which the thread that drives the run had to wait."""
        return 0

    def result_ns(self) -> int:
        """By how much a result of the CPU delays what the GPU is given to compute."""
        return 0

    def draft_landing_ns(self, loads: int) -> int:
        """By how much it delays the draft."""
        return 0

    def gate_readback_ns(self, tokens: int, next_gate: bool, gates: bool) -> int:
        """What a layer takes more where a policy hears what the next layer's gate would say, or of gates' weights:
        nothing here, since routers are small."""
        return 0

    def decision_ns(self, policy: str) -> int:
        """What the decisions of a policy take per layer, beyond those of the simplest: nothing here."""
        return 0

    def notice_ns(self) -> int:
        """How long after an arrival it is known."""
        return 0

    def handover_ns(self) -> int:
        """What handing experts to the CPU takes, before the first: hidden states go there and come back in copies that
        are too small for more than their latency to count."""
        return 2 * self.hardware.link.latency_ns

    def draft_token_ns(self, read: int = 1) -> int:
        """One draft token, for which the draft reads `read` tokens: those that it has not seen.  They are read together
        in the time of one.  Raises InputError when there is no draft model."""
        if self.draft is None:
            raise InputError(f"model {self.geometry.name}: field draft: expected a draft model to draft with, got none")
        return self._draft_token

    def draft_layers_ns(self, first: int, end: int, read: int = 1) -> int:
        """The share of a draft token that goes with the target's MoE layers `first` to `end` (exclusive).

        Over all layers the shares add up to `draft_token_ns` exactly; 0 when there is no draft model.
        """
        return self._draft_until[end] - self._draft_until[first]

    def explain(self, tokens: int, context: int, tokens_per_expert: Sequence[int]) -> tuple[CostItem, ...]:
        """The items of one layer whose needed experts get these numbers of tokens, then one load, an expert on the CPU
        (where there is one) and one draft token.

        Items called "layer: ..." add up to the layer's time when all its experts are on the GPU.
        """
        gpu, link, size = self.hardware.gpu, self.hardware.link, self.geometry.expert_bytes(self.bits)
        items = [
            CostItem("layer: attention", self.attention_ns(tokens, context), self._attention.formula(tokens, context)),
            CostItem("layer: router", self.router_ns(tokens), self._router.formula(tokens)),
            CostItem("layer: overhead", self.overhead_ns(), "launches and small kernels, from the hardware profile"),
        ]
        for count in sorted({n for n in tokens_per_expert if n > 0}):
            times = tokens_per_expert.count(count)
            formula = f"each {self._expert.formula(count)}, + {format_ms(gpu.expert_overhead_ns)} overhead"
            items.append(CostItem(f"layer: {times} x expert, tokens = {count}", times * self.expert_ns(count), formula))
        moved = f"{format_ms(link.latency_ns)} latency + {size / 1e6:,.3f} MB at {link.bandwidth / 1e9:,.1f} GB/s"
        items.append(CostItem("load of one expert", self.load_ns(), moved))
        if self.hardware.cpu is not None:
            for count in sorted({n for n in tokens_per_expert if n > 0}):
                formula = f"{self.hardware.cpu.name}: {self._host_expert().formula(count)}"
                items.append(CostItem(f"expert on the CPU, tokens = {count}", self.host_expert_ns(count), formula))
        if self.draft:
            items.append(draft_item(self.draft, self.hardware, self.bits))
        return tuple(items)

    def _resident_expert_ns(self, tokens: int) -> int:
        return self._expert.ns(tokens) + self.hardware.gpu.expert_overhead_ns

    def _host_expert_ns(self, tokens: int) -> int:
        return self._host_expert().ns(tokens)

    def _host_expert(self) -> Roofline:
        cpu = self.hardware.cpu
        if cpu is None:
            raise InputError(f"hardware {self.hardware.name}: field cpu: expected a CPU to compute on, got null")
        return Roofline(self.geometry.expert_params, self.bits, cpu.bandwidth, cpu.gflops * 10**9)
