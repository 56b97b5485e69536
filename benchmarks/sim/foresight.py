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
on two cores; `--seeds 3` is done in some ten minutes.  `python -m benchmarks.pages foresight` makes the pages' tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.files import RESULTS
from benchmarks.sim.foresight_cells import (
    BASE_GAMMA,
    BITS,
    CACHES,
    MODEL,
    OURS,
    RECORDING,
    SLOWER,
    Cell,
    Cells,
)
from spmoe.machine.geometry import geometry
from spmoe.policy.registry import RECIPES, recipe
from spmoe.state.keys import Shape

RESULT = RESULTS / "foresight.json"
TITLE = "What foresight saves on real routing, idea by idea, and beside the peers."
GAMMAS = (0, 1, 2, 4, 8, 16)
LESS_OFTEN = (0.8, 0.6)
"""How often the draft agrees where lengths matter most."""
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
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--seeds", type=int, default=20, metavar="N")
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    options = parser.parse_args()
    if not (options.data / RECORDING).is_file():
        parser.error(f"no {RECORDING} in {options.data}")
    seeds = range(options.seeds)
    cells = Cells(options.data, options.out, options.jobs, TITLE)
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
