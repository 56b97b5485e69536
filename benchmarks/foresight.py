"""What foresight saves on real routing, idea by idea, and beside the peers.

    python -m benchmarks.foresight --data DIR --out benchmarks/results/foresight.json

imports the recording of Mixtral-8x7B in DIR (`mixtral-8x7b-instruct.humaneval.jsonl`, see docs/validation.md) once per
seed, with a draft that agrees 97 times in 100 and forecasts of accuracy 0.889, and replays it on an RTX 4090's profile
with a draft of 8 ms per token.  Two tables come of it, means over all seeds.  *Ablation*: every part at gamma 4.
*Peers*: policies that only fetch, each at its own best fixed gamma, chosen on the first seed; those that were
best there are run on all.  Loads and times are told
as multiples of the bound of gamma 4.

A cell that the output has already is not run again, so an interrupted run goes on where it stopped.  `--seeds 3` is
done in some five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from sim.pool import spread
from sim.runner import Runner
from spmoe.files import atomic_write
from spmoe.machine.geometry import geometry
from spmoe.machine.hardware import Hardware, load_hardware
from spmoe.policy.registry import RECIPES, recipe
from spmoe.setting import resolve_setting
from spmoe.state.keys import Shape
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
GAMMAS = (0, 1, 2, 4, 8, 16)
BASE_GAMMA = 4
ABLATION = (
    "on-demand.lru",
    "spmoe.paper",
    "on-demand.lru-per-layer",
    "spmoe.per-layer",
    "least-stale.spec",
    *(name for name in RECIPES if name.startswith("spmoe.foresight")),
    "clairvoyant",
)
ORACLES = frozenset({"future", "hindsight"})
PEERS = tuple(
    name
    for name, one in RECIPES.items()
    if one.fetches_only(cpu=True)
    and one.lossless
    and not one.needs & ORACLES
    and not name.startswith("spmoe.foresight")
)
BEST = 4
"""So many peers of a setting are run on all seeds."""
OURS = "spmoe.foresight"
OUR_GAMMA = 16


class Cell(NamedTuple):
    """A policy in a setting, for one seed."""

    bits: str
    cache: float
    policy: str
    gamma: int
    seed: int

    @property
    def key(self) -> str:
        """What the output calls it."""
        return " ".join(map(str, self))


@dataclass(frozen=True, slots=True)
class Task:
    """A cell, and where the recording lies."""

    data: Path
    cell: Cell


def machine(bits: str) -> Hardware:
    """The profile, whose draft takes its 8 ms at these bits too."""
    hardware = load_hardware(HARDWARE)
    return replace(hardware, draft=replace(hardware.draft, bits=float(bits)))


@cache
def recorded(data: Path, seed: int) -> TraceInMemory:
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
    return TraceInMemory(*import_trace(data / RECORDING, "vllm-jsonl", shape, None, RATES, seed))


def measure(task: Task) -> tuple[str, tuple[float, float]]:
    """A cell's loads per token and time per token, as multiples of the bound of gamma 4."""
    cell = task.cell
    trace = recorded(task.data, cell.seed)
    setting = resolve_setting(
        trace.header,
        summarise(trace).longest_request,
        hardware=machine(cell.bits),
        bits=cell.bits,
        cache=cell.cache,
        gamma=cell.gamma,
    )
    runner, one = Runner(trace, setting), recipe(cell.policy)
    metrics, bound = runner.run(one, runner.configure(one)[0]), runner.bound(BASE_GAMMA)
    loads, tpot = metrics.loads_per_token, metrics.tpot_ms
    assert loads is not None and tpot is not None
    return cell.key, (round(loads / bound.loads_per_token, 5), round(tpot / bound.tpot_ms, 5))


class Cells:
    """What is measured so far, kept in the output file."""

    def __init__(self, data: Path, out: Path, jobs: int) -> None:
        self._data = data
        self._out = out
        self._jobs = jobs
        known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
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
        document = {"what": __doc__.splitlines()[0], **tables, "cells": self.values}  # type: ignore[union-attr]
        with atomic_write(self._out) as stream:
            stream.write(json.dumps(document, indent=1) + "\n")

    def mean(self, bits: str, share: float, policy: str, gamma: int, seeds: Sequence[int]) -> tuple[float, float]:
        """Loads and time of a policy, over all seeds."""
        found = [self.values[Cell(bits, share, policy, gamma, seed).key] for seed in seeds]
        return round(fmean(one[0] for one in found), 3), round(fmean(one[1] for one in found), 3)


def settings() -> Iterator[tuple[str, float]]:
    """Bits and cache shares."""
    return ((bits, share) for bits in BITS for share in CACHES)


def gammas_of(policy: str) -> Iterable[int]:
    """The lengths that a policy can be run at: without speculation only one."""
    return GAMMAS if recipe(policy).speculation.gamma(1) else (0,)


def peers_at(share: float) -> Iterator[str]:
    """Those whose slots suffice for their placement."""
    known = geometry(MODEL)
    slots = int(share * known.keys)
    return (
        one for one in PEERS if recipe(one).placement.least(Shape(known.layers, known.experts, known.top_k)) <= slots
    )


def ablation(cells: Cells, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every part at gamma 4."""
    cells.measure(
        Cell(bits, share, policy, BASE_GAMMA, seed)
        for bits, share in settings()
        for policy in ABLATION
        for seed in seeds
    )
    rows = []
    for bits, share in settings():
        for policy in ABLATION:
            loads, tpot = cells.mean(bits, share, policy, BASE_GAMMA, seeds)
            rows.append({"bits": bits, "cache": share, "policy": policy, "loads": loads, "tpot": tpot})
    return rows


def peers(cells: Cells, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The best peers, each at its best fixed gamma, and ours at gamma 16."""
    first = seeds[0]
    cells.measure(
        Cell(bits, share, policy, gamma, first)
        for bits, share in settings()
        for policy in peers_at(share)
        for gamma in gammas_of(policy)
    )
    chosen = []
    for bits, share in settings():
        tpot = {
            (policy, gamma): cells.values[Cell(bits, share, policy, gamma, first).key][1]
            for policy in peers_at(share)
            for gamma in gammas_of(policy)
        }
        best = {policy: gamma for policy, gamma in sorted(tpot, key=lambda one: tpot[one], reverse=True)}
        ahead = sorted(best, key=lambda policy: tpot[policy, best[policy]])[:BEST]
        chosen += [(bits, share, policy, best[policy]) for policy in ahead]
        chosen.append((bits, share, OURS, OUR_GAMMA))
    cells.measure(Cell(*one, seed) for one in chosen for seed in seeds)
    rows = []
    for bits, share, policy, gamma in chosen:
        loads, tpot_mean = cells.mean(bits, share, policy, gamma, seeds)
        rows.append({"bits": bits, "cache": share, "policy": policy, "gamma": gamma, "loads": loads, "tpot": tpot_mean})
    return rows


def worst(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Where ours does worst beside the best peer."""
    found = []
    for bits, share in settings():
        here = [row for row in rows if (row["bits"], row["cache"]) == (bits, share)]
        ours = next(row["tpot"] for row in here if row["policy"] == OURS)
        best = min((row for row in here if row["policy"] != OURS), key=lambda row: row["tpot"])
        found.append(
            {"bits": bits, "cache": share, "best peer": best["policy"], "ratio": round(ours / best["tpot"], 3)}
        )
    return max(found, key=lambda one: one["ratio"])


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Loads and times over the bound, one policy a line."""
    for bits in BITS:
        yield f"{bits} bits: loads / L | TPOT / bound at cache {' '.join(f'{share:.1%}' for share in CACHES)}"
        mine = [row for row in rows if row["bits"] == bits]
        for policy in dict.fromkeys(row["policy"] for row in mine):
            of = {row["cache"]: row for row in mine if row["policy"] == policy}
            loads, tpot = (
                " ".join(f"{of[share][what]:6.3f}" if share in of else "     -" for share in CACHES)
                for what in ("loads", "tpot")
            )
            gammas = " ".join(str(of[share].get("gamma", "")) if share in of else "-" for share in CACHES)
            yield f"  {policy:34} {loads} | {tpot}  {gammas}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What foresight saves on real routing.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=f"folder with {RECORDING}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "foresight.json")
    parser.add_argument("--seeds", type=int, default=20, metavar="N")
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    options = parser.parse_args()
    seeds = range(options.seeds)
    cells = Cells(options.data, options.out, options.jobs)
    parts = ablation(cells, seeds)
    print("\n".join(table(parts)))
    rows = peers(cells, seeds)
    print("\n".join(table(rows)))
    print("worst case:", worst(rows))
    cells.save({"seeds": len(seeds), "ablation": parts, "peers": rows, "worst": worst(rows)})


if __name__ == "__main__":
    main()
