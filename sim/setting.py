"""What a replay runs on: model, machine, and room for experts, resolved from names and options."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from spmoe.errors import InputError
from spmoe.machine.bits import parse_bits
from spmoe.machine.budget import MemoryBudget, memory_budget
from spmoe.machine.cost import CostModel
from spmoe.machine.geometry import DraftModel, Geometry, draft_model, draft_names, geometry, geometry_names
from spmoe.machine.hardware import Hardware, load_hardware
from spmoe.machine.units import format_size, parse_size
from spmoe.trace.schema import DraftShape, Header, ModelShape


@dataclass(frozen=True, slots=True)
class Setting:
    """Model, machine and cache of a replay; `slots` counts all layers together, `gamma` is the length asked for."""

    geometry: Geometry
    draft: DraftModel | None
    hardware: Hardware
    bits: float
    cost: CostModel
    budget: MemoryBudget
    slots: int
    gamma: int
    longest_request: int

    @property
    def feasible(self) -> bool:
        """Whether the machine's memory holds it all."""
        return self.budget.feasible(self.slots, self.hardware.gpu.memory_bytes)

    def describe(self) -> str:
        """The machine and the budget in a line."""
        share = self.slots / self.geometry.keys
        size = format_size(self.slots * self.budget.expert)
        text = (
            f"{self.hardware.name} ({self.hardware.kind}), {self.bits:g} bits: "
            f"{self.slots} of {self.geometry.keys} experts fit ({share:.0%}, {size})"
        )
        hypothetical = self.budget.warning(self.slots, self.hardware.gpu.memory_bytes)
        return f"{text}; {hypothetical}" if hypothetical else text

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
        }


def resolve_setting(
    header: Header,
    longest_request: int,
    *,
    hardware: str | Hardware = "rtx-4090",
    bits: str | float = 4.25,
    vram: str | int | None = None,
    cache: float | None = None,
    slots: int | None = None,
    gamma: int = 4,
) -> Setting:
    """Resolve the options of a replay; at most one of `vram`, `cache` and `slots` may be given.

    Without any, the machine's whole memory counts, less dense weights, draft, KV cache of the longest request and
    workspace.  Raises InputError for unknown names and impossible numbers.
    """
    if gamma < 0:
        raise InputError(f"gamma: expected a number of drafted tokens, 0 or more, got {gamma}")
    if sum(option is not None for option in (vram, cache, slots)) > 1:
        raise InputError("expected only one of vram, cache and slots: each of them sets the size of the cache")
    model = _geometry(header.model)
    draft = _draft(header.draft, model)
    if draft is None and gamma:
        raise InputError("the trace names no draft model and none is known for its model: expected gamma 0")
    machine = load_hardware(hardware) if isinstance(hardware, str) else hardware
    width = parse_bits(bits)
    memory = machine.gpu.memory_bytes
    if vram is not None:
        memory = _memory(vram)
    budget = memory_budget(model, width, draft, longest_request, memory)
    return Setting(
        geometry=model,
        draft=draft,
        hardware=machine,
        bits=width,
        cost=CostModel(model, machine, width, draft),
        budget=budget,
        slots=_slots(model, budget, cache, slots),
        gamma=gamma,
        longest_request=longest_request,
    )


def _memory(vram: str | int) -> int:
    if isinstance(vram, int):
        return vram
    try:
        return parse_size(vram)
    except InputError as error:
        raise InputError(f"vram: {error}") from None


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


def _geometry(shape: ModelShape) -> Geometry:
    """The published geometry where the trace names one, else what the trace says of itself."""
    if shape.name not in geometry_names():
        return Geometry(
            name=shape.name,
            layers=shape.layers,
            experts=shape.experts,
            top_k=shape.top_k,
            expert_params=shape.expert_params,
            dense_params=max(1, shape.dense_params),
            hidden=1,  # A trace does not tell: its router counts with the dense weights.
            kv_bytes_per_token=max(1, shape.kv_bytes_per_token),
            draft=None,
            source="the trace's header",
        )
    known = geometry(shape.name)
    for field in ("layers", "experts", "top_k", "expert_params"):
        if getattr(known, field) != getattr(shape, field):
            raise InputError(
                f"model {shape.name}: field {field}: expected {getattr(known, field)}, the trace says "
                f"{getattr(shape, field)}; a trace of another model needs another name"
            )
    return known


def _draft(shape: DraftShape | None, model: Geometry) -> DraftModel | None:
    if shape is None:
        return draft_model(model.draft) if model.draft else None
    if shape.name in draft_names():
        return draft_model(shape.name)
    return DraftModel(
        name=shape.name,
        params=max(1, shape.params),
        active_params=max(1, shape.active_params),
        layers=model.layers,
        kv_bytes_per_token=shape.kv_bytes_per_token,
        max_bits=None,
        source="the trace's header",
    )
