"""Replays over a grid: all cores, one row per cell, and no finished cell is run twice."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sim.pool import check_jobs, spread
from sim.prepared import Prepared
from sim.sweeps.cell import IDENTITY, Cell, Cutoff, Place, digest, identity
from sim.sweeps.grid import grid
from sim.sweeps.journal import Journal, read_rows
from sim.sweeps.table import Row, check_format, columns, flat, read_table, write_table
from spmoe.errors import InputError
from spmoe.files import check_distinct
from spmoe.machine.hardware import Hardware
from spmoe.progress import Progress
from spmoe.run.options import DEFAULT_BITS, DEFAULT_HARDWARE, GAMMA

if TYPE_CHECKING:
    import pandas as pd

MOST_TOGETHER = 4
"""Policies that share a worker's run of the baseline and of the bound, and what a kill costs each worker at most."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """The rows of all cells, in the order of the grid; `reused` of them were there already.

    `dropped` counts the rows that the file had and the grid does not.
    """

    rows: tuple[Row, ...]
    reused: int
    dropped: int


def sweep(
    traces: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    policies: str | Sequence[str] = "all",
    hardware: str | Hardware | Sequence[str | Hardware] = DEFAULT_HARDWARE,
    *,
    bits: str | float | Sequence[str | float] = DEFAULT_BITS,
    vram: str | int | Sequence[str | int] | None = None,
    cache: float | Sequence[float] | None = None,
    slots: int | Sequence[int] | None = None,
    gamma: int | Sequence[int] = GAMMA,
    cutoff: Cutoff | Sequence[Cutoff] | None = None,
    cpu_experts: bool = True,
    lossy: bool = False,
    out: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
) -> pd.DataFrame:
    """Replay every combination of the given values; each argument takes what `sim.replay` takes, or a sequence of it.

    `cutoff` may be "all": every number of layers; `cpu_experts` holds for all cells.  `lossy` allows policies that
    change the model's output.  `out` (.csv or .parquet) takes the table; cells that it, or an interrupted sweep beside
    it, holds already are not run again.  `jobs`: processes, by default one per core; a script that uses more than one
    has to start under `if __name__ == "__main__":`.

    Returns the table, a row per cell.  Where a policy does not apply, `skipped` says why.  Raises InputError, one line,
    for whatever is wrong with the arguments, before any work.
    """
    import pandas as pd  # Slow to import, and the command line has no use for it.

    values: dict[str, Any] = {"bits": bits, "vram": vram, "cache": cache, "slots": slots, "gamma": gamma}
    cells = grid(traces, policies, hardware, cutoff=cutoff, cpu_experts=cpu_experts, lossy=lossy, **values)
    rows = run_sweep(cells, out, jobs).rows
    return pd.DataFrame(rows, columns=columns(rows))


def run_sweep(
    cells: Sequence[Cell],
    out: str | os.PathLike[str] | None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Run what of `cells` is not in `out` or its journal; `progress` is told the policy and the number of cells.

    Raises InputError as `sweep` does; with `out`, an interrupt says how far it came.
    """
    jobs = check_jobs(jobs)
    kept = {} if out is None else finished(cells, out)
    with nullcontext() if out is None else Journal(out) as journal:
        known = {identity(row): row for row in journal.rows} if journal else {}
        held = kept | known
        rows = {name: held[name] for name in (identity(cell.columns) for cell in cells) if name in held}
        reused = len(rows)
        if progress is not None and reused:
            progress("", reused)
        try:
            with closing(spread(run_task, list(_tasks(cells, rows, jobs)), jobs)) as results:
                for row in chain.from_iterable(results):
                    if journal is not None:
                        journal.add(row)
                    rows[identity(row)] = row
                    if progress is not None:
                        progress(str(row["policy"]), 1)
        except KeyboardInterrupt:
            if out is None:
                raise
            # Asks the files: it may have come between a row's way to the disk and our taking note of it.
            raise KeyboardInterrupt(
                f"{count_done(cells, out)} of {len(cells)} cells are done; the same command goes on from there"
            ) from None
        ordered = tuple(rows[identity(cell.columns)] for cell in cells)
        if out is not None and journal is not None:
            write_table(out, ordered)
            journal.remove()
    return Sweep(ordered, reused, len(held) - reused)


def finished(cells: Sequence[Cell], out: str | os.PathLike[str]) -> dict[tuple[str, ...], Row]:
    """The rows that the table `out` holds, by cell; none where there is no such file.

    Raises InputError for a name that cannot be written to, for a file that is no table of a sweep, and for the trace.
    """
    check_format(out)
    for path in dict.fromkeys(cell.place.trace for cell in cells):
        check_distinct(trace=path, out=out)
        check_distinct(trace=path, journal=f"{os.fspath(out)}.partial")
    if not Path(out).exists():
        return {}
    rows = read_table(out)
    missing = [name for name in IDENTITY if not rows or name not in rows[0]]
    if {"code", "trace_digest"} & set(missing):
        raise InputError(f"{out}: is there already and is no table of a sweep; expected the name of one, or a new name")
    if missing:
        lacking = f"column{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
        raise InputError(f"{out}: is the table of another version, without the {lacking}; expected a new name")
    return {identity(row): row for row in rows}


def count_done(cells: Sequence[Cell], out: str | os.PathLike[str]) -> int:
    """How many of the cells need not be run."""
    held = finished(cells, out).keys() | {identity(row) for row in read_rows(Path(f"{os.fspath(out)}.partial"))}
    return sum(identity(cell.columns) in held for cell in cells)


class Task(NamedTuple):
    """Cells of one place and one cutoff, which one replay answers."""

    place: Place
    cutoff: int | Literal["best"] | None
    cells: tuple[Cell, ...]


def _tasks(cells: Sequence[Cell], done: dict[tuple[str, ...], Row], jobs: int) -> Iterator[Task]:
    """What is left to do, in pieces small enough to fill all processes."""
    left = [cell for cell in cells if identity(cell.columns) not in done]
    together = max(1, min(MOST_TOGETHER, len(left) // (2 * jobs)))
    for place, nearby in groupby(left, key=lambda cell: cell.place):
        by_cutoff: dict[Any, list[Cell]] = {}
        for cell in nearby:
            by_cutoff.setdefault(cell.cutoff, []).append(cell)
        for cutoff, group in by_cutoff.items():
            for start in range(0, len(group), together):
                yield Task(place, cutoff, tuple(group[start : start + together]))


def run_task(task: Task) -> list[Row]:
    """The rows of a task's cells.  Raises InputError where the trace is no longer what it was."""
    obstacles = {cell.policy: cell.obstacle for cell in task.cells if cell.obstacle is not None}
    found = _replay(task, [cell.policy for cell in task.cells if cell.obstacle is None], obstacles)
    if digest(task.place.trace) != task.place.digest:
        raise InputError(f"{task.place.trace}: changed while the sweep was running")
    return [
        {**cell.columns, "skipped": obstacles.get(cell.policy), **found.get(cell.policy, {})} for cell in task.cells
    ]


@lru_cache(maxsize=1)
def _prepared(place: Place) -> Prepared:
    """A worker's tasks come place by place: what they compare with is computed once."""
    return Prepared(place.trace, place.options)


def _replay(task: Task, policies: list[str], obstacles: dict[str, str]) -> dict[str, Row]:
    """Results by policy; why there is none goes to `obstacles`."""
    if not policies:
        return {}  # The place itself may be impossible.
    prepared = _prepared(task.place)
    # Lossy policies have cells only where they were asked for.
    found = {name: prepared.obstacle(name, lossy=True) for name in policies}
    obstacles.update((name, why) for name, why in found.items() if why is not None)
    able = [name for name, why in found.items() if why is None]
    if not able:
        return {}
    done = prepared.replay(able, task.cutoff, lossy=True).to_json()
    config = done["config"]
    shared = {**flat(done["bound"], "bound_"), "stand_ins": config["stand_ins"]}
    return {
        row["policy"]: {"cutoff": config["cutoff"]["layers"].get(row["policy"]), **flat(row), **shared}
        for row in done["results"]
    }
