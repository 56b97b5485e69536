"""Tables of docs/foresight.md and the README, from what `benchmarks.sim.foresight` and `worst_case` measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.files import ROOT, read_json
from benchmarks.pages.markers import Block
from benchmarks.sim.foresight import RESULT
from benchmarks.sim.foresight_cells import BASE_GAMMA, BITS, CACHES, OURS, SLOWER
from benchmarks.sim.worst_case import RESULT as WORST_CASE

PAGE = ROOT / "docs" / "foresight.md"
README = ROOT / "README.md"
CPUS = {0: "no CPU", 1: "24 cores", 4: "a CPU four times slower"}
ASKED = {
    ("16", 0): "0.70, 0.95, 1.3",
    ("16", 1): "0.30, 0.40, 0.65",
    ("16", 4): "0.70, 0.85, 1.0",
    ("4.25", 0): "0.75, 1.0, 1.3",
}
"""What was to be reached at 25, 50 and 75 % cache."""
Row = Mapping[str, Any]


def blocks() -> Iterator[Block]:
    """Those of the committed results."""
    found, worst = read_json(RESULT), read_json(WORST_CASE)
    yield Block(PAGE, "chosen", chosen(found["chosen"]))
    yield Block(PAGE, "split", split(found["split"]))
    yield Block(PAGE, "lengths", lengths(found["lengths"]))
    for bits in BITS:
        rows = [row for row in found["ablation"] if row["bits"] == bits]
        yield Block(PAGE, f"ablation at {bits} bits", ablation(rows))
        for cpu in SLOWER[:2]:
            rows = [row for row in found["peers"] if row["bits"] == bits and row["cpu"] == cpu]
            yield Block(PAGE, f"peers at {bits} bits, {CPUS[cpu]}", peers(rows))
    yield Block(PAGE, "worst beside the peers", worst_beside(found["worst"]))
    yield Block(PAGE, "worst case", worst_case(worst["comparisons"]))
    yield Block(README, "foresight", summary(found))


def line(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def heading(*cells: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield line(*cells)
    yield "|---" * len(cells) + "|"


def shares(first: str = "") -> tuple[str, ...]:
    """Headings of cache shares, the first one with a word before it."""
    return tuple(f"{first if share == CACHES[0] else ''}{100 * share:g}%" for share in CACHES)


def at_shares(rows: Sequence[Row], name: str) -> Iterator[str]:
    """A figure at every cache share; nothing where there is none."""
    found = {row["cache"]: f"{row[name]:.3f}" for row in rows}
    return (found.get(share, "-") for share in CACHES)


def chosen(rows: Sequence[Row]) -> Iterator[str]:
    """Ours at lengths of its own choosing, with CPUs and without."""
    yield from heading("", *shares(), "asked at 25, 50, 75%")
    for bits in BITS:
        for cpu, name in CPUS.items():
            here = [row for row in rows if (row["bits"], row["cpu"]) == (bits, cpu)]
            yield line(f"{bits} bits, {name}", *at_shares(here, "tpot"), ASKED.get((bits, cpu), ""))


def split(rows: Sequence[Row]) -> Iterator[str]:
    """What the CPU adds at one length."""
    yield from heading("", "row", *shares())
    for bits in BITS:
        for cpu in SLOWER[1:]:
            for policy in dict.fromkeys(row["policy"] for row in rows):
                here = [row for row in rows if (row["bits"], row["cpu"], row["policy"]) == (bits, cpu, policy)]
                yield line(f"{bits} bits, {CPUS[cpu]}", f"`{policy}`", *at_shares(here, "tpot"))


def lengths(rows: Sequence[Row]) -> Iterator[str]:
    """Lengths of its own choosing, and the best fixed ones."""
    yield from heading("agreement, bits", *shares())
    for agreement in dict.fromkeys(row["agreement"] for row in rows):
        for bits in BITS:
            cells = []
            for share in CACHES:
                here = [
                    row for row in rows if (row["agreement"], row["bits"], row["cache"]) == (agreement, bits, share)
                ]
                ours = next(row for row in here if row["gamma"] is None)
                best = min((row for row in here if row["gamma"] is not None), key=lambda row: row["tpot"])
                cells.append(f"{ours['tpot']:.3f} ({best['tpot']:.3f}, {best['gamma']})")
            yield line(f"{agreement:g}, {bits}", *cells)


def ablation(rows: Sequence[Row]) -> Iterator[str]:
    """Every part at one length."""
    yield from heading("row", *shares("loads / L at "), *shares("TPOT / bound at "))
    for policy in dict.fromkeys(row["policy"] for row in rows):
        here = [row for row in rows if row["policy"] == policy]
        yield line(f"`{policy}`", *at_shares(here, "loads"), *at_shares(here, "tpot"))


def peers(rows: Sequence[Row]) -> Iterator[str]:
    """The best of the peers, and ours."""
    yield from heading("row", *shares("loads / L at "), *shares("TPOT / bound at "), "gamma")
    for policy in sorted(dict.fromkeys(row["policy"] for row in rows), key=lambda policy: policy == OURS):
        here = [row for row in rows if row["policy"] == policy]
        gammas = {row["cache"]: "chosen" if row["gamma"] is None else str(row["gamma"]) for row in here}
        gamma = "chosen" if policy == OURS else ", ".join(gammas.get(share, "-") for share in CACHES)
        yield line(f"`{policy}`", *at_shares(here, "loads"), *at_shares(here, "tpot"), gamma)


def worst_beside(worst: Row) -> Iterator[str]:
    """Where ours does worst beside the best of the peers."""
    yield f"Worst beside the best peer: {worst['ratio']:.2f} times the time of `{worst['best peer']}`, at"
    yield f"{worst['bits']} bits, {100 * worst['cache']:g}% cache, {CPUS[worst['cpu']]}."


def worst_case(comparisons: Sequence[Row]) -> Iterator[str]:
    """Of every trace the place where ours does worst beside the best other policy."""
    yield from heading("trace", "misses fetched: worst", "CPU on: worst")
    for trace in dict.fromkeys(row["trace"] for row in sorted(comparisons, key=lambda row: row["trace"])):
        cells = []
        for cpu in (False, True):
            here = [row for row in comparisons if (row["trace"], row["cpu"]) == (trace, cpu)]
            worst = max(here, key=lambda row: row["ratio"])
            place = f"{100 * worst['cache']:g}% cache, {worst['hardware']}"
            cells.append(f"{worst['ratio']:.3f} (`{worst['peer']}` at gamma {worst['gamma']}, {place})")
        yield line(f"`{trace}`", *cells)


def summary(found: Mapping[str, Any]) -> Iterator[str]:
    """The README's table: parts at one length, then all of them at lengths that they choose."""
    shown = CACHES[1:]

    def rows() -> Iterator[tuple[str, str, str, list[Row]]]:
        for policy in ("spmoe.paper", "spmoe.per-layer", f"{OURS}.eviction", f"{OURS}.run-ahead", OURS):
            here = [row for row in found["ablation"] if (row["bits"], row["policy"]) == ("16", policy)]
            name = f"`{policy}`, gamma {BASE_GAMMA}{', no CPU' if policy == OURS else ''}"
            yield name, "loads / L", "loads", here
            yield name, "TPOT / bound", "tpot", here
        for bits in BITS:
            for cpu, name in CPUS.items():
                here = [row for row in found["chosen"] if (row["bits"], row["cpu"]) == (bits, cpu)]
                yield f"`{OURS}`, {name}{'' if bits == BITS[0] else f', {bits} bits'}", "TPOT / bound", "tpot", here

    yield from heading("", "", *(f"{share:.0%}" for share in shown))
    for name, what, field, here in rows():
        of = {row["cache"]: f"{row[field]:.2f}" for row in here}
        yield line(name, what, *(of[share] for share in shown))
