"""What a run is set up with: model, machine, and room for experts, resolved from names and options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import UnionType
from typing import Any

from spmoe.errors import InputError
from spmoe.machine.bits import parse_bits
from spmoe.machine.budget import MemoryBudget, memory_budget
from spmoe.machine.cost import CostModel
from spmoe.machine.geometry import DraftModel, Geometry, draft_model, draft_names, geometry, geometry_names
from spmoe.machine.hardware import Hardware, load_hardware
from spmoe.machine.measured import cost_model
from spmoe.machine.units import format_size, parse_size
from spmoe.state.keys import Shape
from spmoe.trace.schema import DraftShape, Header, ModelShape

MAX_GAMMA = 1024
"""No draft is worth following that far; the limit keeps exact arithmetic with it short."""

GAMMA = 4
"""Drafted tokens per step where nothing else is asked for."""

LONGEST = 16
"""As many may be drafted by recipes that choose the length, where nothing else is asked for."""


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


def resolve_setting(
    header: Header,
    longest_request: int,
    *,
    hardware: str | Hardware = "rtx-4090",
    bits: str | float = 4.25,
    vram: str | int | None = None,
    cache: float | None = None,
    slots: int | None = None,
    gamma: int | None = None,
    gamma_max: int | None = None,
    as_model: str | None = None,
    cpu_experts: bool = True,
) -> Setting:
    """Resolve the options of a run; at most one of `vram`, `cache` and `slots` may be given.

    With `gamma` all recipes that speculate draft so many tokens; without, those that can choose draft up to `gamma_max`
    (16 where that is not given either), and the others 4.

    Without any, the machine's whole memory counts, less dense weights, draft, KV cache of the longest request and
    workspace.  `as_model` names a published model whose sizes, with those of its draft, take the place of the trace's:
    its layers, experts and top-k have to be as many.  `cpu_experts=False` keeps the CPU from computing experts.

    Raises InputError for unknown names and impossible numbers.
    """
    for name, length in (("gamma", gamma), ("gamma_max", gamma_max)):
        if length is not None:
            _check_number(name, length, int)
            if not 0 <= length <= MAX_GAMMA:
                raise InputError(f"{name}: expected a number of drafted tokens, 0 to {MAX_GAMMA}, got {length}")
    if gamma is not None and gamma_max is not None:
        raise InputError("expected only one of gamma and gamma_max: a given length leaves nothing to choose")
    if slots is not None:
        _check_number("slots", slots, int)
    if not isinstance(cpu_experts, bool):
        raise InputError(f"cpu_experts: expected True or False, got {cpu_experts!r}")
    if cache is not None:
        _check_number("cache", cache, int | float)
    if sum(option is not None for option in (vram, cache, slots)) > 1:
        raise InputError("expected only one of vram, cache and slots: each of them sets the size of the cache")
    model = _geometry(header.model) if as_model is None else _stand_in(as_model, header.model)
    draft = _draft(header.draft if as_model is None else None, model)
    if draft is None and gamma != 0:
        raise InputError("the trace names no draft model and none is known for its model: expected gamma 0")
    machine = hardware if isinstance(hardware, Hardware) else load_hardware(hardware)
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
        cost=cost_model(model, machine, width, draft),
        budget=budget,
        slots=_slots(model, budget, cache, slots),
        slots_given=cache is not None or slots is not None,
        gamma=GAMMA if gamma is None else gamma,
        longest_request=longest_request,
        gamma_max=None if gamma is not None else LONGEST if gamma_max is None else gamma_max,
        cpu_experts=cpu_experts and machine.cpu is not None,
        stands_in=as_model is not None,
    )


def _memory(vram: str | int) -> int:
    if isinstance(vram, str):
        try:
            return parse_size(vram)
        except InputError as error:
            raise InputError(f"vram: {error}") from None
    _check_number("vram", vram, int)
    return vram


def _check_number(name: str, value: object, kind: type[int] | UnionType) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        expected = "a whole number" if kind is int else "a number"
        raise InputError(f"{name}: expected {expected}, got {value!r}")


def _check_same(kind: str, known: Geometry | DraftModel, shape: ModelShape | DraftShape, fields: Sequence[str]) -> None:
    """What a trace says of a published model must be what is published of it; a KV size of 0 says nothing."""
    for field in fields:
        said, expected = getattr(shape, field), getattr(known, field)
        if said != expected and not (field == "kv_bytes_per_token" and said == 0):
            raise InputError(
                f"{kind} {shape.name}: field {field}: expected {expected}, the trace says {said}; another {kind} needs "
                "another name"
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
    fields = ("layers", "experts", "top_k", "expert_params", "dense_params", "kv_bytes_per_token")
    _check_same("model", known, shape, fields)
    return known


def _stand_in(name: str, shape: ModelShape) -> Geometry:
    """The published model called so, if it could have been routed like that."""
    known = geometry(name)
    if (known.layers, known.experts, known.top_k) != (shape.layers, shape.experts, shape.top_k):
        raise InputError(
            f"as_model: expected a model of {shape.layers} MoE layers of {shape.experts} experts, top-{shape.top_k}, "
            f"as {shape.name} has; {name} has {known.layers} of {known.experts}, top-{known.top_k}"
        )
    return known


def _draft(shape: DraftShape | None, model: Geometry) -> DraftModel | None:
    if shape is None:
        return draft_model(model.draft) if model.draft else None
    if shape.name in draft_names():
        known = draft_model(shape.name)
        _check_same("draft", known, shape, ("params", "active_params", "kv_bytes_per_token"))
        return known
    return DraftModel(
        name=shape.name,
        params=max(1, shape.params),
        active_params=max(1, shape.active_params),
        layers=model.layers,
        kv_bytes_per_token=shape.kv_bytes_per_token,
        max_bits=None,
        source="the trace's header",
    )
