"""The tables of docs/fidelity.md and a sentence of the README, from what `benchmarks.engine.fidelity` measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks.engine.fidelity import CACHES, RATIOS, known, run_file
from benchmarks.files import ROOT
from benchmarks.pages.markers import Block
from sim.studies.fidelity import Compared, Fidelity
from spmoe.results.run import read_run


def blocks() -> Iterator[Block]:
    """Those of the committed results."""
    found, files = known(), [run_file(ratio, cache) for ratio in RATIOS for cache in CACHES]
    yield Block(ROOT / "docs" / "fidelity.md", "fidelity", page(found, files))
    yield Block(ROOT / "README.md", "fidelity summary", sentence(found))


def page(found: Fidelity, files: Sequence[Path]) -> Iterator[str]:
    """The table of the page."""
    runs = {file.name: read_run(file) for file in files}
    some = next(iter(runs.values()))
    yield (
        f"{some.hardware.source.partition(';')[0]}; {some.trace.tokens} tokens of traces/{some.trace.name}, gamma "
        f"{some.gamma}, {len(some.policies)} policies, {len(some.policies[0].tpots_ms)} runs each."
    )
    yield ""
    yield "| link/compute | cache | link GB/s | median error | largest error | its policy | beyond its limit | tau |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in found.runs():
        run = runs[one.policies[0].run]
        ratio, cache = next((r, c) for r in RATIOS for c in CACHES if run_file(r, c).name == one.policies[0].run)
        tau = one.kendall_tau
        yield (
            f"| {ratio:g} | {cache:.0%} | {run.link_gbps:g} | {one.median_error:.1%} | {one.max_error:.1%} | "
            f"`{one.worst.policy}` | {len(one.beyond)} | {'-' if tau is None else f'{tau:.3f}'} |"
        )
    tau, beyond = found.kendall_tau, f"{len(found.beyond)} of {len(found.policies)}"
    yield (
        f"| all | | | {found.median_error:.1%} | {found.max_error:.1%} | `{found.worst.policy}` | {beyond} | "
        f"{'-' if tau is None else f'{tau:.3f}'} |"
    )
    yield ""
    yield "By policy, over all runs:"
    yield ""
    yield "| policy | median error | largest | mean (signed) | median spread |"
    yield "|---|---|---|---|---|"
    for name in dict.fromkeys(each.policy for each in found.policies):
        of = [each for each in found.policies if each.policy == name]
        yield _by_policy(name, of)


def _by_policy(name: str, compared: Sequence[Compared]) -> str:
    sizes = sorted(abs(each.error) for each in compared)
    spreads = sorted(each.spread for each in compared)
    mean = sum(each.error for each in compared) / len(compared)
    middle = len(compared) // 2
    return f"| `{name}` | {sizes[middle]:.1%} | {sizes[-1]:.1%} | {mean:+.1%} | {spreads[middle]:.1%} |"


def sentence(found: Fidelity) -> Iterator[str]:
    """What the README says."""
    tau, runs = found.kendall_tau, list(found.runs())
    yield (
        f"On the CPU, with the small pair and links of three speeds, {len(found.policies)} policies and settings: "
        f"median error {found.median_error:.1%},"
    )
    yield (
        f"largest {found.max_error:.1%}, where runs spread by {median(each.spread for each in found.policies):.1%}; "
        f"Kendall's tau of the rankings {0 if tau is None else tau:.2f}. As close as is asked"
    )
    yield f"for are {sum(run.on_target for run in runs)} of {len(runs)} settings."
