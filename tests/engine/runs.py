"""Runs in virtual time, and what the simulator makes of the traces recorded from them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from engine.cli.document import document
from engine.cli.trace_output import trace_of
from engine.engine import Engine
from engine.options import Options
from engine.plan import Plan, make_plan
from sim.machine.driver import Driver
from sim.replay import replay
from sim.runner import Runner
from spmoe.machine.hardware import Hardware, load_hardware
from spmoe.policy.parts.future import Future
from spmoe.policy.parts.runtime import NATIVE
from spmoe.scheduler.log import LogWriter
from spmoe.scheduler.scheduler import Scheduler
from spmoe.trace.schema import TraceInMemory
from spmoe.trace.windows import requests
from spmoe.trace.writer import write_trace
from tests.engine.drafted import Pair

FAST = load_hardware("rtx-4090")
SLOW = replace(FAST, link=replace(FAST.link, bandwidth=3 * 10**7))
"""Its link takes about as long for a tiny expert as the draft for a token: what is prefetched often comes late."""


class Request(NamedTuple):
    """A prompt, and how many tokens may follow it."""

    prompt: tuple[int, ...]
    budget: int


@dataclass(frozen=True, slots=True)
class Run:
    """What a recorded run in virtual time came to; `log` is its decision log."""

    plan: Plan
    tokens: tuple[tuple[int, ...], ...]
    trace: TraceInMemory
    log: str
    document: dict[str, Any]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The events and commands of the log."""
        return [json.loads(line) for line in self.log.splitlines()[1:-1]]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Those of one kind."""
        return [line for line in self.lines if line.get("event") == name]


def run(
    pair: Pair,
    asked: Sequence[Request],
    machine: Hardware | None = FAST,
    *,
    draft: bool = True,
    sampling: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> Run:
    """Runs the requests one after the other; in real time where `machine` is None.  `sampling` is for `generate`."""
    given = Options(virtual_time=machine, lossy=True, context=64, **options)
    plan = make_plan(pair.target, pair.draft if draft else None, given)
    stream = io.StringIO()
    log = LogWriter(stream, plan.config)
    with Engine(plan, [log.observe], record=True) as engine:
        tokens = tuple(engine.generate(prompt, budget, **sampling).tokens for prompt, budget in asked)
        engine.finish()
        log.close()
        return Run(plan, tokens, trace_of(engine), stream.getvalue(), document(engine, engine.plan.sampling).to_json())


def run_knowing(folder: Path, pair: Pair, asked: Sequence[Request], machine: Hardware | None, **options: Any) -> Run:
    """The same, by a policy that has to know an earlier run: first, that one."""
    first = run(pair, asked, machine, **{**options, "policy": "on-demand.lru"})
    write_trace(folder / "earlier.jsonl", first.trace.header, first.trace)
    return run(pair, asked, machine, earlier=folder / "earlier.jsonl", **options)


def simulated(run: Run, folder: Path) -> tuple[str, dict[str, Any]]:
    """Log and result entry of a replay of the run's trace, in the run's setting."""
    plan, log = run.plan, folder / "simulated.log"
    setting = plan.setting
    result = replay(
        run.trace,
        plan.recipe.name,
        setting.hardware,
        bits=setting.bits,
        slots=setting.slots,
        gamma=setting.gamma if setting.gamma_max is None else None,
        gamma_max=setting.gamma_max,
        cutoff=plan.options.cutoff,
        cpu_experts=setting.cpu_experts,
        lossy=True,
        log=log,
    )
    return log.read_text(), result.to_json()["results"][0]


def simulated_natively(run: Run) -> str:
    """The log of a replay that runs on the engine's runtime, where the recipe has another."""
    plan = run.plan
    stream = io.StringIO()
    log = LogWriter(stream, plan.config)
    needs = plan.recipe.needs
    driver = Driver(
        Scheduler(plan.config, Future(lambda: requests(run.trace), plan.config.gamma) if "future" in needs else None),
        plan.setting.cost,
        (log.observe,),
        Runner(run.trace, plan.setting)._popularity(plan.recipe, plan.config),
        runtime=NATIVE,
    )
    driver.run(requests(run.trace))
    log.close()
    return stream.getvalue()
