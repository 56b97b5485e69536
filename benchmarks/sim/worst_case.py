"""Where `spmoe.foresight` does worst beside the best other policy, on the traces that come with the project.

    python -m benchmarks.sim.worst_case

replays the first 400 tokens of every trace in `traces` at several cache shares and 4.25 bits on profiles of an RTX 3090
and a 4090.  `spmoe.foresight` chooses the length of its drafts; every peer runs at its own best fixed gamma of 0, 1, 2,
4, 8 and 16, without speculation too.  Left out are policies that know the future or change the output.  Peers that use
the CPU are compared with foresight that does, the others with foresight that does not.

All peers run at their usual length first, on one of the machines; those that were best there in a setting run at every
length on both.  A cell that the output has already is not run again: an interrupted run goes on where it stopped.  It
takes half an hour on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.files import RESULTS, read_json, write_json
from sim.pool import spread
from sim.runner import Runner
from spmoe.policy.registry import RECIPES, recipe
from spmoe.run.applicability import obstacle
from spmoe.run.options import RunOptions
from spmoe.run.setting import Setting, resolve_setting
from spmoe.trace.excerpt import excerpt
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import TraceInMemory
from spmoe.trace.summary import summarise

RESULT = RESULTS / "worst_case.json"
TITLE = "Where `spmoe.foresight` does worst beside the best other policy, on the traces that come with the project."
TRACES = ("mixtral", "deepseek-v2-lite", "pico", "pico-32l")
HARDWARE = ("rtx-4090", "rtx-3090")
CACHES = (0.125, 0.25, 0.5, 0.75)
GAMMAS = (0, 1, 2, 4, 8, 16)
USUAL = 4
TOKENS = 400
BEST = 3
"""So many peers of a setting, with the CPU and without, run at every length."""
OURS = "spmoe.foresight"
ORACLES = frozenset({"future", "hindsight"})
PEERS = tuple(
    name
    for name, one in RECIPES.items()
    if one.lossless and not one.needs & ORACLES and not name.startswith("spmoe.foresight")
)


class Place(NamedTuple):
    """What is compared: a trace on a machine."""

    trace: str
    hardware: str
    cache: float


class Cell(NamedTuple):
    """A policy there; without `gamma` it chooses the length, and `cpu` says whether the CPU may compute experts."""

    place: Place
    policy: str
    gamma: int | None
    cpu: bool

    @property
    def key(self) -> str:
        """What the output calls it."""
        return " ".join(map(str, (*self.place, self.policy, self.gamma, "cpu" if self.cpu else "link")))


@cache
def beginning(name: str) -> TraceInMemory:
    """The first requests of a trace."""
    trace = TraceFile(Path(__file__).parents[2] / "traces" / f"{name}.jsonl")
    header = trace.header
    assert header.draft is not None
    return excerpt(trace, TOKENS, header.model, header.draft)


def setting_of(cell: Cell) -> Setting:
    """The setting of a cell."""
    trace, place = beginning(cell.place.trace), cell.place
    return resolve_setting(
        trace.header,
        summarise(trace).longest_request,
        RunOptions(hardware=place.hardware, cache=place.cache, gamma=cell.gamma, cpu_experts=cell.cpu),
    )


def measure(cell: Cell) -> tuple[str, float]:
    """A cell's TPOT in ms."""
    runner, one = Runner(beginning(cell.place.trace), setting_of(cell)), recipe(cell.policy)
    tpot = runner.run(one, runner.setting.configure(one)[0]).tpot_ms
    assert tpot is not None
    return cell.key, tpot


class Cells:
    """What is measured so far, kept in the output file."""

    def __init__(self, out: Path, jobs: int) -> None:
        self._out = out
        self._jobs = jobs
        known = read_json(out) if out.exists() else {}
        self.values: dict[str, float] = known.get("cells", {})

    def __getitem__(self, cell: Cell) -> float:
        return self.values[cell.key]

    def measure(self, cells: Iterable[Cell]) -> None:
        """Measure those that are not measured yet."""
        left = [cell for cell in dict.fromkeys(cells) if cell.key not in self.values]
        for number, (key, value) in enumerate(spread(measure, left, self._jobs), start=1):
            self.values[key] = round(value, 5)
            if number % 100 == 0 or number == len(left):
                print(f"{number} of {len(left)}", flush=True)
                self.save({})

    def save(self, found: dict[str, Any]) -> None:
        """Write all there is."""
        write_json(self._out, {"what": TITLE, **found, "cells": self.values})


@dataclass(frozen=True, slots=True)
class Comparison:
    """Foresight beside the best peer at a place."""

    place: Place
    cpu: bool
    ours: float
    peer: str
    gamma: int
    theirs: float

    @property
    def ratio(self) -> float:
        """Our time over theirs."""
        return self.ours / self.theirs

    def to_json(self) -> dict[str, Any]:
        """As it is saved; times in ms."""
        return {
            **self.place._asdict(),
            "cpu": self.cpu,
            "tpot_ms": self.ours,
            "peer": self.peer,
            "gamma": self.gamma,
            "peer_tpot_ms": self.theirs,
            "ratio": round(self.ratio, 4),
        }


def places(hardware: Iterable[str]) -> Iterator[Place]:
    """All of them on these machines."""
    return (Place(trace, machine, share) for trace in TRACES for machine in hardware for share in CACHES)


def lengths(policy: str) -> tuple[int, ...]:
    """The lengths that a policy can be run at."""
    return GAMMAS if recipe(policy).speculation.gamma(1) else (0,)


def applies(cell: Cell) -> bool:
    """Whether the policy can run there."""
    trace = beginning(cell.place.trace)
    return obstacle(recipe(cell.policy), trace.header, summarise(trace), setting_of(cell), lossy=False) is None


def peers(place: Place, cpu: bool) -> list[Cell]:
    """Those that can run there, at their usual length: all that use the CPU, or all that do not."""
    cells = [
        Cell(place, name, USUAL if recipe(name).speculation.gamma(1) else 0, cpu)
        for name in PEERS
        if ("cpu" in recipe(name).needs) == cpu
    ]
    return [cell for cell in cells if applies(cell)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Where foresight does worst beside the best other policy.")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    options = parser.parse_args()
    cells = Cells(options.out, options.jobs)
    first = [(place, cpu) for place in places(HARDWARE[:1]) for cpu in (False, True)]
    usual = {at: peers(*at) for at in first}
    cells.measure(cell for found in usual.values() for cell in found)
    ahead = {at: [cell.policy for cell in sorted(found, key=cells.__getitem__)[:BEST]] for at, found in usual.items()}
    chosen = {
        (place, cpu): [
            Cell(place, policy, gamma, cpu)
            for policy in ahead[place._replace(hardware=HARDWARE[0]), cpu]
            for gamma in lengths(policy)
        ]
        for place in places(HARDWARE)
        for cpu in (False, True)
    }
    ours = {at: Cell(at[0], OURS, None, at[1]) for at in chosen}
    cells.measure(ours.values())
    cells.measure(cell for found in chosen.values() for cell in found)
    rows = []
    for (place, cpu), found in chosen.items():
        best = min(found, key=cells.__getitem__)
        assert best.gamma is not None
        rows.append(Comparison(place, cpu, cells[ours[place, cpu]], best.policy, best.gamma, cells[best]))
    rows.sort(key=lambda row: row.ratio, reverse=True)
    for row in rows[:10]:
        print(
            f"{row.ratio:.3f} {' '.join(map(str, row.place))} {'cpu' if row.cpu else 'link'}: {row.peer}, {row.gamma}"
        )
    worst = rows[0]
    print(f"worst case: {worst.ratio:.3f} times {worst.peer} at gamma {worst.gamma}")
    cells.save({"tokens": TOKENS, "worst": worst.to_json(), "comparisons": [row.to_json() for row in rows]})


if __name__ == "__main__":
    main()
