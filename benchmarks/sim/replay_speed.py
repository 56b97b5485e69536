"""How fast the simulator replays, beside bare SimPy time-outs in the same run.

    python -m benchmarks.sim.replay_speed

Replays `traces/mixtral.jsonl` (from memory, default setting) in turn with as many bare SimPy time-outs as 400 events
per step make, and writes the ratios to benchmarks/results/replay_speed.json; then times whole commands, reading the
trace and the bound included.  Ratios hold on a shared machine, seconds do not: quote the ratios.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from functools import partial
from statistics import median
from typing import Any

import simpy

from benchmarks.files import RESULTS, ROOT, machine, write_json
from sim.runner import Runner
from spmoe.policy.registry import recipe
from spmoe.run.options import RunOptions
from spmoe.run.setting import resolve_setting
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import TraceInMemory
from spmoe.trace.summary import summarise

TRACE = ROOT / "traces" / "mixtral.jsonl"
RESULT = RESULTS / "replay_speed.json"

POLICIES = ("on-demand.lru", "spmoe.paper")
EVENTS_PER_STEP = 400
PAIRS = 15


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def bare_simpy(events: int) -> None:
    """One process that does nothing but wait, `events` times."""
    env = simpy.Environment()

    def wait() -> Generator[simpy.Event, Any, None]:
        for _ in range(events):
            yield env.timeout(1)

    env.process(wait())
    env.run()


def against_bare_simpy() -> dict[str, Any]:
    """Per policy, the time of a replay over that of bare SimPy, pair by pair."""
    file = TraceFile(TRACE)
    trace = TraceInMemory(file.header, file)
    runner = Runner(trace, resolve_setting(trace.header, summarise(trace).longest_request, RunOptions()))
    found = {}
    for name in POLICIES:
        chosen = recipe(name)
        config, _ = runner.setting.configure(chosen)
        metrics = runner.run(chosen, config)
        ratios, replays, bares = [], [], []
        for _ in range(PAIRS):
            replays.append(seconds(partial(runner.run, chosen, config)))
            bares.append(seconds(partial(bare_simpy, EVENTS_PER_STEP * metrics.steps)))
            ratios.append(replays[-1] / bares[-1])
        found[name] = {
            "steps": metrics.steps,
            "scheduler_events": metrics.events,
            "ratio": {"min": min(ratios), "median": median(ratios), "max": max(ratios)},
            "replay_s": {"min": min(replays), "median": median(replays)},
            "bare_s": {"min": min(bares), "median": median(bares)},
        }
    return found


def whole_commands() -> dict[str, float]:
    """Seconds of whole processes."""
    found = {}
    for name, policies in {**{name: (name,) for name in POLICIES}, "all": ("all",)}.items():
        command = [sys.executable, "-m", "sim", "replay", str(TRACE), "--policy", *policies]
        run = partial(subprocess.run, command, cwd=ROOT, check=True, capture_output=True)
        found[name] = min(seconds(run) for _ in range(3))
    return found


def main() -> None:
    result = {
        "command": "python -m benchmarks.sim.replay_speed",
        "machine": machine("simpy"),
        "events_per_step": EVENTS_PER_STEP,
        "pairs": PAIRS,
        "against_bare_simpy": against_bare_simpy(),
        "whole_command_s": whole_commands(),
    }
    write_json(RESULT, result, indent=2)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
