"""Single replays of a real recording: what the tables of `benchmarks.sim.foresight` are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks.files import read_json, write_json
from sim.pool import spread
from sim.runner import Runner
from spmoe.machine.geometry import geometry
from spmoe.machine.hardware import Hardware, load_hardware
from spmoe.policy.registry import recipe
from spmoe.run.options import RunOptions
from spmoe.run.setting import resolve_setting
from spmoe.trace.draws import Rates
from spmoe.trace.importers import import_trace
from spmoe.trace.schema import ModelShape, TraceInMemory
from spmoe.trace.summary import summarise

RECORDING = "mixtral-8x7b-instruct.humaneval.jsonl"
MODEL = "mixtral-8x7b"
HARDWARE = "rtx-4090"
RATES = Rates(agreement=0.97, draft_accuracy=0.889, next_gate_accuracy=0.85)
BITS = ("16", "4.25")
CACHES = (0.125, 0.25, 0.5, 0.75)
BASE_GAMMA = 4
SLOWER = (0, 1, 4)
"""CPUs: none, the profile's, and one that takes four times as long."""
OURS = "spmoe.foresight"


class Cell(NamedTuple):
    """A policy in a setting, for one seed; `gamma` None where it chooses, `cpu` 0 where no expert is computed there."""

    bits: str
    cache: float
    policy: str
    gamma: int | None
    seed: int
    cpu: int = 0
    agreement: float = RATES.agreement

    @property
    def key(self) -> str:
        """What the output calls it."""
        return " ".join(map(str, self))


@dataclass(frozen=True, slots=True)
class Task:
    """A cell, and the folder of the recording."""

    data: Path
    cell: Cell


def machine(bits: str, slower: int) -> Hardware:
    """The profile, whose draft takes its 8 ms at these bits too, with a CPU so many times slower (0: as it is)."""
    hardware = load_hardware(HARDWARE)
    cpu = hardware.cpu
    assert cpu is not None
    if slower:
        cpu = replace(cpu, bandwidth=cpu.bandwidth // slower, gflops=cpu.gflops // slower)
    return replace(hardware, draft=replace(hardware.draft, bits=float(bits)), cpu=cpu)


@cache
def recorded(data: Path, agreement: float, seed: int) -> TraceInMemory:
    """The recording, with what it lacks drawn from this seed."""
    known = geometry(MODEL)
    shape = ModelShape(
        MODEL,
        known.layers,
        known.experts,
        known.top_k,
        known.expert_params,
        known.dense_params,
        known.kv_bytes_per_token,
    )
    rates = replace(RATES, agreement=agreement)
    return TraceInMemory(*import_trace(data / RECORDING, "vllm-jsonl", shape, None, rates, seed))


def measure(task: Task) -> tuple[str, tuple[float, float]]:
    """A cell's loads per token and time per token, as multiples of the bound of gamma 4."""
    cell = task.cell
    trace = recorded(task.data, cell.agreement, cell.seed)
    setting = resolve_setting(
        trace.header,
        summarise(trace).longest_request,
        RunOptions(
            hardware=machine(cell.bits, cell.cpu),
            bits=cell.bits,
            cache=cell.cache,
            gamma=cell.gamma,
            cpu_experts=cell.cpu > 0,
        ),
    )
    runner, one = Runner(trace, setting), recipe(cell.policy)
    metrics, bound = runner.run(one, setting.configure(one)[0]), runner.bound(BASE_GAMMA)
    loads, tpot = metrics.loads_per_token, metrics.tpot_ms
    assert loads is not None and tpot is not None
    return cell.key, (round(loads / bound.loads_per_token, 5), round(tpot / bound.tpot_ms, 5))


class Cells:
    """What is measured so far, kept in the output file."""

    def __init__(self, data: Path, out: Path, jobs: int, title: str) -> None:
        self._data = data
        self._title = title
        self._out = out
        self._jobs = jobs
        known = read_json(out) if out.exists() else {}
        self.values: dict[str, list[float]] = known.get("cells", {})

    def measure(self, cells: Iterable[Cell]) -> None:
        """Measure those that are not measured yet."""
        tasks = [Task(self._data, cell) for cell in dict.fromkeys(cells) if cell.key not in self.values]
        for number, (key, value) in enumerate(spread(measure, tasks, self._jobs), start=1):
            self.values[key] = list(value)
            if number % 50 == 0 or number == len(tasks):
                print(f"{number} of {len(tasks)}", flush=True)
                self.save({})

    def save(self, tables: dict[str, Any]) -> None:
        """Write all there is."""
        write_json(self._out, {"what": self._title, **tables, "cells": self.values})

    def tpot(self, cell: Cell) -> float:
        """The time of a cell."""
        return self.values[cell.key][1]

    def row(self, cell: Cell, seeds: Sequence[int]) -> dict[str, Any]:
        """Loads and time of a policy in a setting, means over all seeds."""
        found = [self.values[cell._replace(seed=seed).key] for seed in seeds]
        loads, tpot = (round(fmean(one[what] for one in found), 3) for what in (0, 1))
        fields = cell._asdict()
        del fields["seed"]
        return {**fields, "loads": loads, "tpot": tpot}
