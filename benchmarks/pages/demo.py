"""The README's table of the demo, from what `benchmarks.sim.demo` measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.files import ROOT, read_json
from benchmarks.pages.markers import Block
from benchmarks.sim.demo import RESULT, RESULT_NO_CPU


def blocks() -> Iterator[Block]:
    """The table."""
    yield Block(ROOT / "README.md", "demo table", table(read_json(RESULT), read_json(RESULT_NO_CPU)))


def table(document: Mapping[str, Any], without_cpu: Mapping[str, Any]) -> Iterator[str]:
    """The results of two documents `spmoe-result/1` as Markdown; those of the second follow the same policy's."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%}"

    headings = "policy ms/token speed-up x_bound loads/token hit late precision recall stall link CPU"
    yield f"| {' | '.join(headings.split()).replace('_', ' ')} |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    again = {result["policy"]: result for result in without_cpu["results"]}
    both = ((f"`{each['policy']}`", each, again.get(each["policy"])) for each in document["results"])
    rows = ((name, each) for label, *pair in both for name, each in zip((label, f"{label}, no CPU"), pair, strict=True))
    for name, result in rows:
        if result is None:
            continue
        cells = [
            name,
            f"{result['tpot_ms']:.1f}",
            f"{result['speedup_vs_on_demand']:.2f}",
            f"{result['vs_bound']:.2f}",
            f"{result['loads_per_token']:.2f}",
            share(result["hit_rate"]),
            share(result["late_rate"]),
            share(result["prefetch_precision"]),
            share(result["prefetch_recall"]),
            share(result["stall_fraction"]),
            share(result["link_utilisation"]),
            share(result["host_utilisation"] or None),
        ]
        yield f"| {' | '.join(cells)} |"
    bound = document["bound"]
    yield f"| *bound* | {bound['tpot_ms']:.1f} | | 1.00 | {bound['loads_per_token']:.2f} | | | | | | | |"
