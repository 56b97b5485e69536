"""Replays the demo and puts its result table into the README.

    python -m benchmarks.pages.readme_table

writes benchmarks/results/demo.json, which is what `make demo` replays, and the table between the two markers of
README.md.  A test compares all three.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import sim
from spmoe.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "demo.json"
BEGIN = "<!-- demo table: made by benchmarks/pages/readme_table.py -->"
END = "<!-- end of demo table -->"


POLICIES = re.search(r"^DEMO = (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1].split()  # type: ignore[index]
"""Those of `make demo`."""


def table(document: dict[str, Any]) -> str:
    """The results of a document `spmoe-result/1` as Markdown."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%}"

    lines = [
        "| policy | ms/token | speed-up | x bound | loads/token | hit | late | precision | recall | stall | link "
        "| CPU |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
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
        lines.append(f"| {' | '.join(cells)} |")
    bound = document["bound"]
    lines.append(f"| *bound* | {bound['tpot_ms']:.1f} | | 1.00 | {bound['loads_per_token']:.2f} | | | | | | | |")
    return "\n".join(lines)


def embedded(readme: str, document: dict[str, Any]) -> str:
    """The README's text with the table of `document` between its markers."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(document)}\n{END}{after}"


def main() -> None:
    document = sim.replay(ROOT / "traces" / "mixtral.jsonl", POLICIES).to_json()
    with atomic_write(RESULTS) as stream:
        stream.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    text = embedded(README.read_text(encoding="utf-8"), document)
    with atomic_write(README) as stream:
        stream.write(text)
    print(table(document))


if __name__ == "__main__":
    main()
