"""The resolved setting of a run: model, machine, cache size and draft length."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from spmoe.errors import InputError
from spmoe.machine.bits import parse_bits
from spmoe.machine.budget import MemoryBudget, memory_budget
from spmoe.machine.cost import CostModel
from spmoe.machine.geometry import DraftModel, Geometry
from spmoe.machine.hardware import Hardware
from spmoe.machine.measured import cost_model
from spmoe.machine.units import format_size
from spmoe.policy.recipe import Recipe
from spmoe.policy.sp_moe.cutoff import Cutoff
from spmoe.run.models import draft_of, stand_in_geometry, target_geometry
from spmoe.run.options import GAMMA, GAMMA_MAX, RunOptions
from spmoe.scheduler.config import SchedulerConfig, configure
from spmoe.state.keys import Shape
from spmoe.trace.schema import Header


@dataclass(frozen=True, slots=True)
class Setting:
    """Model, machine and cache of a run.

    `slots` counts all layers together and is either given or what the memory leaves; `gamma` is the length of drafts,
    and `gamma_max` the longest that recipes may draft which choose it themselves (None: they may not).
    `cpu_experts`: the machine has a CPU whose speed is known, and it may compute experts.
    With `stands_in`, `geometry` and `draft` are not those of the trace's model, but of another of its shape.
    """

    geometry: Geometry
    draft: DraftModel | None
    hardware: Hardware
    bits: float
    cost: CostModel
    budget: MemoryBudget
    slots: int
    slots_given: bool
    gamma: int
    longest_request: int
    gamma_max: int | None
    cpu_experts: bool
    stands_in: bool = False

    @property
    def shape(self) -> Shape:
        """The model's MoE layers."""
        return Shape(self.geometry.layers, self.geometry.experts, self.geometry.top_k)

    @property
    def feasible(self) -> bool:
        """Whether the machine's memory holds it all."""
        return self.budget.feasible(self.slots, self.hardware.gpu.memory_bytes)

    def describe(self) -> str:
        """The machine and the budget in a line, and the model where it is not the trace's."""
        share = self.slots / self.geometry.keys
        size = format_size(self.slots * self.budget.expert)
        text = f"timed as {self.geometry.name}, " if self.stands_in else ""
        text += (
            f"{self.hardware.name} ({self.hardware.kind}), {self.bits:g} bits: "
            f"slots for {self.slots} of {self.geometry.keys} experts ({share:.0%}, {size})"
        )
        hypothetical = self.budget.warning(self.slots, self.hardware.gpu.memory_bytes)
        return f"{text}; {hypothetical}" if hypothetical else text

    def explain(self) -> str:
        """How the number of slots came about, in a line."""
        if self.slots_given:
            return f"{self.slots} slots as asked for; {self.budget.explain_needs(self.slots)}"
        return self.budget.explain()

    def configure(self, recipe: Recipe, cutoff: int | None = None) -> tuple[SchedulerConfig, Cutoff | None]:
        """The configuration of a run of `recipe`, the same for every driver; see `spmoe.scheduler.config.configure`."""
        return configure(
            recipe,
            self.cost,
            self.slots,
            self.gamma,
            self.longest_request,
            cutoff,
            self.gamma_max,
            self.cpu_experts,
        )

    def to_json(self) -> dict[str, Any]:
        """The resolved configuration, as saved beside results."""
        return {
            "model": self.geometry.name,
            "draft": self.draft.name if self.draft else None,
            "hardware": self.hardware.name,
            "hardware_kind": self.hardware.kind,
            "bits": self.bits,
            "vram_bytes": self.budget.vram,
            "needed_bytes": self.budget.needs(self.slots),
            "slots": self.slots,
            "cache_share": self.slots / self.geometry.keys,
            "gamma": self.gamma,
            "gamma_max": self.gamma_max,
            "cpu_experts": self.cpu_experts,
        }


def resolve_setting(header: Header, longest_request: int, options: RunOptions) -> Setting:
    """The setting of runs of the trace with that header, whose longest request has so many tokens.

    Raises InputError for unknown names and impossible numbers.
    """
    options.check()
    as_model = options.as_model
    model = target_geometry(header.model) if as_model is None else stand_in_geometry(as_model, header.model)
    draft = draft_of(header.draft if as_model is None else None, model)
    gamma, gamma_max = options.gamma, options.gamma_max
    if draft is None and gamma != 0:
        raise InputError("the trace names no draft model and none is known for its model: expected gamma 0")
    machine = options.machine()
    bits = parse_bits(options.bits)
    given = options.memory_bytes()
    memory = machine.gpu.memory_bytes if given is None else given
    budget = memory_budget(model, bits, draft, longest_request, memory)
    return Setting(
        geometry=model,
        draft=draft,
        hardware=machine,
        bits=bits,
        cost=cost_model(model, machine, bits, draft),
        budget=budget,
        slots=_slots(model, budget, options.cache, options.slots),
        slots_given=options.cache is not None or options.slots is not None,
        gamma=GAMMA if gamma is None else gamma,
        longest_request=longest_request,
        gamma_max=None if gamma is not None else GAMMA_MAX if gamma_max is None else gamma_max,
        cpu_experts=options.cpu_experts and machine.cpu is not None,
        stands_in=as_model is not None,
    )


def _slots(model: Geometry, budget: MemoryBudget, cache: float | None, slots: int | None) -> int:
    if slots is not None:
        if not 1 <= slots <= model.keys:
            raise InputError(
                f"slots: expected 1 to {model.keys} ({model.layers} layers x {model.experts}), got {slots}"
            )
        return slots
    if cache is None:
        return budget.slots
    if not 0 < cache <= 1:  # NaN fails too
        raise InputError(f"cache: expected a share of all experts above 0 and up to 1, got {cache}")
    share = int(Fraction(str(cache)) * model.keys)
    if share < 1:
        raise InputError(f"cache: expected room for at least one of {model.keys} experts, got {cache}")
    return share
