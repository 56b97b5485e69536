"""What a scheduler is set up with: everything that decides its decisions besides the events."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from spmoe.errors import InputError
from spmoe.machine.cost import CostModel
from spmoe.machine.geometry import Geometry
from spmoe.policy.parts.io_plan import DEPTH
from spmoe.policy.parts.pace import Pace
from spmoe.policy.recipe import Recipe
from spmoe.policy.sp_moe.cutoff import Cutoff, analytical_cutoff
from spmoe.state.keys import Shape

_MANY = 1024
"""Tokens of an expert with which the CPU's arithmetic decides its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Shape of the model, room on the GPU, and what the policy may reckon with.

    `slots` counts all layers together; `gamma` is the number of drafted tokens for recipes that follow it; `cutoff` the
    number of leading layers that SP-MoE prefetches for; `pace` how long things take when nothing stalls.  With
    `chooses` the recipe decides how many tokens to draft, at most `gamma`.
    """

    recipe: str
    layers: int
    experts: int
    top_k: int
    slots: int
    gamma: int
    cutoff: int
    pace: Pace
    depth: int = DEPTH
    chooses: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "experts", "top_k", "slots", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if min(self.pace) < 0 or self.pace.load_bytes == 0 or self.pace.transfer_ns == 0:
            raise ValueError(f"times and sizes must be positive, but pace is {self.pace}")
        if self.gamma < 0:
            raise ValueError(f"gamma must not be negative, but is {self.gamma}")
        if not 0 <= self.cutoff <= self.layers:
            raise ValueError(f"cutoff must be within 0..{self.layers}, not {self.cutoff}")

    @property
    def shape(self) -> Shape:
        """The model's."""
        return Shape(self.layers, self.experts, self.top_k)


def even_window(model: Geometry, tokens: int) -> tuple[Fraction, int]:
    """Expected distinct experts of a layer for so many tokens, were all chosen evenly, and tokens per expert (rounded).

    The first is a fraction, so that what follows from it is the same on every machine.
    """
    touched = model.experts * (1 - (1 - Fraction(model.top_k, model.experts)) ** tokens)
    return touched, round(tokens * model.top_k / touched)


def host_tokens(cost: CostModel) -> int:
    """The most tokens for which the CPU computes an expert in less time than a load takes; 0 where it never does.

    Raises InputError where the hardware profile has no CPU.
    """
    load_ns = cost.load_ns()
    tokens = 0
    for bit in reversed(range(20)):  # The time grows with the tokens, so the answer can be found bit by bit.
        if cost.host_expert_ns(tokens | 1 << bit) < load_ns:
            tokens |= 1 << bit
    return tokens


def configure(
    recipe: Recipe,
    cost: CostModel,
    slots: int,
    gamma: int,
    context: int,
    cutoff: int | None = None,
    gamma_max: int | None = None,
    cpu_experts: bool = True,
) -> tuple[SchedulerConfig, Cutoff | None]:
    """The configuration of a run, the same for every driver.

    `context` is the longest context expected, in tokens; `cutoff` overrides the analytical cutoff layer, which is
    returned too where the recipe has use for one.  With `gamma_max`, a recipe that can choose the length of its drafts
    does so, up to that; else it is `gamma`.  Without `cpu_experts`, or where the hardware profile has no CPU, recipes
    that can do without one do so.  Raises InputError for numbers out of range, and where a recipe that needs a CPU
    finds none in the profile.
    """
    model = cost.geometry
    chooses = gamma_max is not None and recipe.speculation.chooses
    if gamma_max is not None and chooses:
        gamma = gamma_max
    window = recipe.speculation.gamma(gamma) + 1
    touched, tokens = even_window(model, window)
    expert_bytes = model.expert_bytes(cost.bits)
    pace = Pace(
        load_bytes=expert_bytes,
        latency_ns=cost.hardware.link.latency_ns,
        transfer_ns=cost.transfer_ns(expert_bytes),
        draft_ns=cost.draft_token_ns() if gamma else 0,
        layer_ns=cost.layer_ns(window, context) + ceil(touched * cost.expert_ns(tokens)),
        host_tokens=host_tokens(cost) if "cpu" in recipe.needs else 0,
        least_layer_ns=cost.layer_ns(1, context) + model.top_k * cost.expert_ns(1),
    )
    if recipe.miss.uses_cpu and cpu_experts and cost.hardware.cpu is not None:
        many = cost.host_expert_ns(_MANY)
        pace = pace._replace(
            host_ns=cost.host_expert_ns(1),
            host_token_ns=-(-many // _MANY),
            handover_ns=cost.handover_ns(),
            expert_ns=max(0, cost.expert_ns(tokens) - cost.result_ns()),
        )
    reason = None
    critical = recipe.predictor.critical(model.top_k)
    if recipe.has_cutoff and critical:
        reason = analytical_cutoff(
            model.layers,
            model.experts,
            critical,
            gamma,
            min(slots, model.keys),
            pace.load_ns,
            pace.draft_ns,
            pace.layer_ns,
        )
        if cutoff is None:
            cutoff = reason.layers
    if cutoff is not None and not 0 <= cutoff <= model.layers:
        raise InputError(f"cutoff {cutoff}: expected a number of layers within 0..{model.layers}")
    config = SchedulerConfig(
        recipe=recipe.name,
        layers=model.layers,
        experts=model.experts,
        top_k=model.top_k,
        slots=slots,
        gamma=gamma,
        cutoff=cutoff or 0,
        pace=pace,
        depth=recipe.io.depth,
        chooses=chooses,
    )
    return config, reason
