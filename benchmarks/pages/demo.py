"""The README's table of the demo, from what `benchmarks.sim.demo` measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.files import ROOT, read_json
from benchmarks.pages.markers import Block
from benchmarks.sim.demo import RESULT


def blocks() -> Iterator[Block]:
    """The table."""
    yield Block(ROOT / "README.md", "demo table", table(read_json(RESULT)))


def table(document: Mapping[str, Any]) -> Iterator[str]:
    """The results of a document `spmoe-result/1` as Markdown."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%}"

    headings = "policy ms/token speed-up x_bound loads/token hit late precision recall stall link CPU"
    yield f"| {' | '.join(headings.split()).replace('_', ' ')} |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for result in document["results"]:
        cells = [
            f"`{result['policy']}`",
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
