"""What foresight saves on real routing, idea by idea, and beside the peers.

    python -m benchmarks.sim.foresight --data DIR --out benchmarks/results/foresight.json

imports the recording of Mixtral-8x7B in DIR (`mixtral-8x7b-instruct.humaneval.jsonl`, see docs/validation.md) once per
seed, with a draft that agrees 97 times in 100 and forecasts of accuracy 0.889, and replays it on an RTX 4090's profile
with a draft of 8 ms per token.  Tables come of it, means over all seeds or (the last two) ten.  *Ablation*: every part
at gamma 4, none uses the CPU.  *Chosen*: all parts at lengths of their own choosing, with no CPU, the profile's CPU and
one four times slower.  *Peers*: policies that know no future, each at its own best fixed gamma, chosen on the
first seed; those that were best there are run on all.  *Lengths*: the same policy at lengths of its own choosing and at
its best fixed gamma in hindsight, where the draft agrees less often.  *Split*: what the CPU adds at gamma 4.  Loads and
times are told as multiples of the bound of gamma 4, fetch-only, in the same setting.

A cell that the output has already is not run again, so an interrupted run goes on where it stopped.  It takes an hour
on two cores; `--seeds 3` is done in some ten minutes.  `python -m benchmarks.pages.foresight` puts tables into pages.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from spmoe.run.setting import resolve_setting
from spmoe.state.keys import Shape
from spmoe.trace.draws import Rates
from spmoe.trace.importers import import_trace
from spmoe.trace.schema import ModelShape, TraceInMemory
from spmoe.trace.summary import summarise

RECORDING = "mixtral-8x7b-instruct.humaneval.jsonl"
MODEL = "mixtral-8x7b"
HARDWARE = "rtx-4090"
RATES = Rates(agreement=0.97, draft_accuracy=0.889, next_gate_accuracy=0.85)
LESS_OFTEN = (0.8, 0.6)
"""How often the draft agrees where lengths matter most."""
BITS = ("16", "4.25")
CACHES = (0.125, 0.25, 0.5, 0.75)
GAMMAS = (0, 1, 2, 4, 8, 16)
BASE_GAMMA = 4
SLOWER = (0, 1, 4)
"""CPUs: none, the profile's, and one that takes four times as long."""
OURS = "spmoe.foresight"
PARTS = tuple(name for name in RECIPES if name.startswith(OURS))
ABLATION = (
    "on-demand.lru",
    "spmoe.paper",
    "on-demand.lru-per-layer",
    "spmoe.per-layer",
    "least-stale.spec",
    *(name for name in PARTS if recipe(name).fetches_only(cpu=True)),
    OURS,
    "clairvoyant",
)
ORACLES = frozenset({"future", "hindsight"})
PEERS = tuple(name for name, one in RECIPES.items() if one.lossless and not one.needs & ORACLES and name not in PARTS)
BEST = 3
"""So many peers of a setting, with the CPU and without, are run on all seeds."""
NEAR = 2
"""So many fixed lengths of ours."""
FEWER = 10
"""Seeds for the tables of lengths and of the split."""


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
    """A cell, and where the recording lies."""

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
        hardware=machine(cell.bits, cell.cpu),
        bits=cell.bits,
        cache=cell.cache,
        gamma=cell.gamma,
        cpu_experts=cell.cpu > 0,
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


def settings() -> Iterator[tuple[str, float]]:
    """Bits and cache shares."""
    return ((bits, share) for bits in BITS for share in CACHES)


def gammas_of(policy: str) -> Iterable[int]:
    """The lengths that a policy can be run at: without speculation only one."""
    return GAMMAS if recipe(policy).speculation.gamma(1) else (0,)


def peers_at(share: float, cpu: bool) -> Iterator[str]:
    """Those that use the CPU, or those that do not, whose slots suffice for their placement."""
    known = geometry(MODEL)
    shape, slots = Shape(known.layers, known.experts, known.top_k), int(share * known.keys)
    return (
        name for name in PEERS if ("cpu" in recipe(name).needs) == cpu and recipe(name).placement.least(shape) <= slots
    )


def over_seeds(cells: Cells, chosen: Sequence[Cell], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of these, whatever their seed, over all seeds."""
    cells.measure(cell._replace(seed=seed) for cell in chosen for seed in seeds)
    return [cells.row(cell, seeds) for cell in chosen]


def ablation(cells: Cells, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every part at gamma 4."""
    chosen = [Cell(bits, share, policy, BASE_GAMMA, 0) for bits, share in settings() for policy in ABLATION]
    return over_seeds(cells, chosen, seeds)


def all_parts(cells: Cells, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Ours at lengths of its own choosing, with and without CPUs."""
    chosen = [Cell(bits, share, OURS, None, 0, cpu) for bits, share in settings() for cpu in SLOWER]
    return over_seeds(cells, chosen, seeds)


def split(cells: Cells, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What the CPU adds at gamma 4, without and with drafting past the window."""
    chosen = [
        Cell(bits, share, policy, BASE_GAMMA, 0, cpu)
        for bits, share in settings()
        for cpu in SLOWER[1:]
        for policy in (f"{OURS}.split", OURS)
    ]
    return over_seeds(cells, chosen, seeds[:FEWER])


def peers(cells: Cells, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The best peers, each at its best fixed gamma, and ours beside them; with the CPU, and without."""
    first = {
        (bits, share, cpu): [
            Cell(bits, share, policy, gamma, seeds[0], cpu)
            for policy in peers_at(share, cpu > 0)
            for gamma in gammas_of(policy)
        ]
        for bits, share in settings()
        for cpu in (0, 1)
    }
    cells.measure(cell for found in first.values() for cell in found)
    chosen = []
    for (bits, share, cpu), found in first.items():
        best = {cell.policy: cell for cell in sorted(found, key=cells.tpot, reverse=True)}
        chosen += sorted(best.values(), key=cells.tpot)[:BEST]
        chosen.append(Cell(bits, share, OURS, None, seeds[0], cpu))
    return over_seeds(cells, chosen, seeds)


def lengths(cells: Cells, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Lengths of its own choosing beside the fixed ones that were best on two seeds."""
    seeds = seeds[:FEWER]
    places = [(bits, share, agreement) for agreement in LESS_OFTEN for bits, share in settings()]
    chosen = []
    for bits, share, agreement in places:
        fixed = [Cell(bits, share, OURS, gamma, 0, 0, agreement) for gamma in GAMMAS]
        sample = seeds[:2]
        cells.measure(cell._replace(seed=seed) for cell in fixed for seed in sample)
        fixed.sort(key=lambda cell: fmean(cells.tpot(cell._replace(seed=seed)) for seed in sample))
        chosen += [Cell(bits, share, OURS, None, 0, 0, agreement), *fixed[:NEAR]]
    return over_seeds(cells, chosen, seeds)


def worst(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Where ours does worst beside the best peer."""
    found = []
    for bits, share in settings():
        for cpu in (0, 1):
            here = [row for row in rows if (row["bits"], row["cache"], row["cpu"]) == (bits, share, cpu)]
            ours = next(row["tpot"] for row in here if row["policy"] == OURS)
            best = min((row for row in here if row["policy"] != OURS), key=lambda row: row["tpot"])
            ratio = round(ours / best["tpot"], 3)
            found.append({"bits": bits, "cache": share, "cpu": cpu, "best peer": best["policy"], "ratio": ratio})
    return max(found, key=lambda one: one["ratio"])


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Loads and times over the bound, a policy a line."""
    names = ("agreement", "bits", "cpu", "policy")
    yield f"agreement, bits, CPU, policy: loads / L | TPOT / bound at cache {' '.join(f'{one:.1%}' for one in CACHES)}"
    for line in dict.fromkeys((*(row[name] for name in names), row["gamma"] is None) for row in rows):
        mine = [row for row in rows if (*(row[name] for name in names), row["gamma"] is None) == line]
        for gammas in ([row for row in mine if row["cache"] == share] for share in CACHES):
            mine = [row for row in mine if row not in gammas] + sorted(gammas, key=lambda row: row["tpot"])[:1]
        of = {row["cache"]: row for row in mine}
        loads, tpot = (
            " ".join(f"{of[share][what]:6.3f}" if share in of else "     -" for share in CACHES)
            for what in ("loads", "tpot")
        )
        gamma = " ".join(str(of[share]["gamma"]) if share in of else "-" for share in CACHES)
        yield f"  {line[0]} {line[1]:>4} {line[2]} {line[3]:34} {loads} | {tpot}  {gamma}"


TABLES: Mapping[str, Callable[[Cells, Sequence[int]], list[dict[str, Any]]]] = {
    "chosen": all_parts,
    "ablation": ablation,
    "lengths": lengths,
    "peers": peers,
    "split": split,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What foresight saves on real routing.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=f"folder with {RECORDING}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "foresight.json")
    parser.add_argument("--seeds", type=int, default=20, metavar="N")
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    options = parser.parse_args()
    if not (options.data / RECORDING).is_file():
        parser.error(f"no {RECORDING} in {options.data}")
    seeds = range(options.seeds)
    cells = Cells(options.data, options.out, options.jobs)
    tables: dict[str, Any] = {"seeds": len(seeds)}
    for name, tabulate in TABLES.items():
        rows = tables[name] = tabulate(cells, seeds)
        print("\n".join(table(rows)), flush=True)
        cells.save(tables)
    tables["worst"] = worst(tables["peers"])
    print("worst case:", tables["worst"])
    cells.save(tables)


if __name__ == "__main__":
    main()
