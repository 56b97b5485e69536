"""The layers of a pass: which experts each needs, and where they are computed."""

from __future__ import annotations

from collections.abc import Container

from spmoe.policy.parts.miss_action import Needs
from spmoe.policy.recipe import Recipe
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.loads import Loads
from spmoe.state.commands import LayerPlan
from spmoe.state.events import Computed, HostComputed, LayerReached
from spmoe.state.residency import Residency


class Layers:
    """The layer that is open, if any, and the one that comes next."""

    def __init__(self, config: SchedulerConfig, recipe: Recipe, residency: Residency, loads: Loads) -> None:
        self.next = 0
        """The layer that is reached next."""
        self._count = config.layers
        self._tokens = 0
        """Of the pass."""
        self._experts = config.experts
        self._pace = config.pace
        self._miss = recipe.miss
        self._assign = recipe.miss.assigner(config.pace)
        self._admission = recipe.admission
        self._has_buffers = recipe.placement.buffers > 0
        self._residency = residency
        self._loads = loads
        self._on_cpu: set[int] = set()
        """Experts of the open layer that the CPU still computes."""
        self._cpu_until = 0
        """When it is through with them, if nothing delays it."""

    @property
    def passed(self) -> bool:
        """Whether the pass has reached all layers."""
        return self.next == self._count

    def begin_pass(self, tokens: int) -> None:
        """A pass over so many tokens is about to reach the first layer."""
        self.next, self._tokens = 0, tokens

    def reach(self, event: LayerReached) -> LayerPlan:
        """Open the next layer: pin what it needs, demand what is missing."""
        self.next += 1
        residency, loads = self._residency, self._loads
        resident, in_flight = residency.resident, residency.in_flight
        wanted, preloads = loads.predictor.wanted, loads.preloads
        cached, on_cpu = self._cpu_share(event) if self._assign is not None else (resident, ())
        first = event.layer * self._experts
        hits: list[int] = []
        late: list[int] = []
        misses: list[int] = []
        used, present, absent, demanded = [], [], [], []
        for expert in event.experts:
            key = first + expert
            if on_cpu and expert in on_cpu:
                if key in cached:
                    hits.append(expert)
                    used.append(key)
                else:
                    (late if key in in_flight or key in wanted or key in preloads else misses).append(expert)
                continue
            if key in resident:
                hits.append(expert)
                present.append(key)
                continue
            absent.append(key)
            if key in in_flight:
                late.append(expert)
            else:
                (late if key in wanted or key in preloads else misses).append(expert)
                demanded.append(key)
        residency.pinned.update(present, absent)
        if demanded:
            loads.demand(sorted(demanded) if self._miss.in_order else demanded)
        if absent and self._miss.whole_layer:
            present = self._demand_rest(first) + present
        present += absent  # Residents first; both kinds in routing order.
        if self._has_buffers:
            residency.adopt(present)
        residency.touch(used + present if used else present)
        self._on_cpu.update(on_cpu)
        waves = bool(absent) and (self._admission.releases_early or not residency.holds(present))
        in_order = self._miss.in_order and not waves  # In waves a hit must not keep its slot until its turn comes.
        return LayerPlan(event.layer, tuple(hits), tuple(late), tuple(misses), tuple(on_cpu), in_order, waves)

    def _cpu_share(self, event: LayerReached) -> tuple[Container[int], tuple[int, ...]]:
        """The keys that count as cached, and the experts that the CPU computes, in routing order."""
        assert self._assign is not None
        first, cached = event.layer * self._experts, self._admission.cached(self._residency)
        needs = Needs(
            event.time,
            tuple([first + expert for expert in event.experts]),
            event.tokens,
            self._tokens,
            cached,
            self._residency.resident,
            self._loads.arrivals(),
        )
        assigned = self._assign(needs, self._pace)
        self._cpu_until = event.time + assigned.cpu_ns
        return cached, tuple([expert for expert in event.experts if first + expert in assigned.keys])

    def _demand_rest(self, first: int) -> list[int]:
        """Demand all experts of a layer that are neither resident nor on their way; returns those not demanded yet."""
        residency, loads = self._residency, self._loads
        rest = [
            key
            for key in range(first, first + self._experts)
            if key not in residency.resident and key not in residency.in_flight and key not in loads.demands
        ]
        loads.demand(rest)
        return rest

    def expects_computed(self, event: Computed) -> bool:
        """Whether these experts of the open layer were to be computed, and are."""
        first, residency = event.layer * self._experts, self._residency
        keys = {first + expert for expert in event.experts}
        return (
            event.layer == self.next - 1
            and len(keys) == len(event.experts)
            and keys <= residency.pinned
            and keys <= residency.resident.keys()
        )

    def computed(self, event: Computed) -> None:
        """These experts may leave."""
        first = event.layer * self._experts
        self._residency.pinned.difference_update([first + expert for expert in event.experts])

    def expects_from_cpu(self, event: HostComputed) -> bool:
        """Whether the CPU was to compute that expert of the open layer."""
        return event.layer == self.next - 1 and event.expert in self._on_cpu

    def computed_on_cpu(self, expert: int) -> None:
        """It has."""
        self._on_cpu.remove(expert)

    @property
    def complete(self) -> bool:
        """Whether all that the open layer needs is there."""
        return self._residency.pinned <= self._residency.resident.keys() and not self._on_cpu

    def close(self) -> None:
        """All of the layer is computed."""
        self._residency.pinned.clear()

    def next_landing(self) -> int | None:
        """When (ns) the open layer can go on: a load of it arrives, or the CPU is through with all of its own; None
        where it waits for neither, or can go on now."""
        pinned = self._residency.pinned
        if not self._residency.resident.keys().isdisjoint(pinned):
            return None
        lands = self._cpu_until if self._on_cpu else None
        for key, arrives in self._loads.arrivals():
            if self._assign is None or key in pinned:
                return arrives if lands is None or arrives < lands else lands
        return lands
