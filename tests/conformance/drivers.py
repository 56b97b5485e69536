"""The drivers that the conformance suite runs against.  A new one is one more entry of `DRIVERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sim.machine.driver import Driver
from sim.machine.program import Popularity
from spmoe.machine.cost import CostModel
from spmoe.machine.geometry import DraftModel, Geometry
from spmoe.machine.hardware import load_hardware
from spmoe.policy.parts.future import Future
from spmoe.policy.recipe import Recipe
from spmoe.scheduler.config import SchedulerConfig, configure
from spmoe.scheduler.scheduler import Scheduler
from spmoe.state.commands import Command
from spmoe.state.events import Event
from spmoe.state.keys import Shape
from spmoe.trace.popularity import count_uses, most_needed
from spmoe.trace.windows import requests
from tests.conformance.cases import Case


@dataclass(frozen=True, slots=True)
class Recording:
    """What went over the contract's table in one run: every event with its commands."""

    config: SchedulerConfig
    future: Future | None
    entries: tuple[tuple[Event, tuple[Command, ...]], ...]


Drive = Callable[[Recipe, Case], Recording]
"""Runs a case under a recipe with a driver."""


def with_room(recipe: Recipe, case: Case) -> Case:
    """The case with no fewer slots than the recipe's placement needs."""
    shape = case.trace.header.model
    least = recipe.placement.least(Shape(shape.layers, shape.experts, shape.top_k))
    return replace(case, slots=max(case.slots, least))


def cost_of(case: Case) -> CostModel:
    """The cost model of the case's model at 16 bits on an RTX 4090 with the case's link."""
    shape = case.trace.header.model
    geometry = Geometry(
        name=shape.name,
        layers=shape.layers,
        experts=shape.experts,
        top_k=shape.top_k,
        expert_params=shape.expert_params,
        dense_params=shape.dense_params,
        hidden=8,
        kv_bytes_per_token=shape.kv_bytes_per_token,
        draft=None,
        source="a test",
    )
    draft = DraftModel("tiny-draft", 1_000, 1_000, shape.layers, 2, None, "a test")
    hardware = load_hardware("rtx-4090")
    return CostModel(geometry, replace(hardware, link=replace(hardware.link, bandwidth=case.bandwidth)), 16, draft)


def set_up(recipe: Recipe, case: Case) -> tuple[SchedulerConfig, Future | None]:
    """What a scheduler needs to run the case."""
    most = case.gamma if case.chooses else None
    config, _ = configure(recipe, cost_of(case), case.slots, case.gamma, 64, case.cutoff, gamma_max=most)
    future = Future(lambda: requests(case.trace), case.gamma) if "future" in recipe.needs else None
    return config, future


def popularity(recipe: Recipe, case: Case) -> Popularity | None:
    """The ranking of keys that a recipe asks for."""
    if "popularity" in recipe.needs:
        return count_uses(case.trace).popular
    if "hindsight" in recipe.needs:
        ranking = most_needed(requests(case.trace), case.gamma, case.layers, case.experts)
        return lambda request: ranking
    return None


def simulate(recipe: Recipe, case: Case) -> Recording:
    """The simulator."""
    config, future = set_up(recipe, case)
    entries: list[tuple[Event, tuple[Command, ...]]] = []
    driver = Driver(
        Scheduler(config, future),
        cost_of(case),
        (lambda event, commands: entries.append((event, commands)),),
        popularity(recipe, case),
        runtime=recipe.runtime,
    )
    driver.run(requests(case.trace))
    return Recording(config, future, tuple(entries))


def execute(recipe: Recipe, case: Case) -> Recording:
    """The engine, with the trace in place of its models; needs torch."""
    from tests.conformance.scripted import run_scripted

    config, future = set_up(recipe, case)
    entries: list[tuple[Event, tuple[Command, ...]]] = []
    run_scripted(
        Scheduler(config, future),
        cost_of(case),
        requests(case.trace),
        popularity(recipe, case),
        lambda event, commands: entries.append((event, commands)),
    )
    return Recording(config, future, tuple(entries))


DRIVERS: Mapping[str, Drive] = {"sim": simulate, "engine": execute}
