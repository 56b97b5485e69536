"""What a sweep has done, and which cells it left out."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.text import Text

from sim.sweeps.sweep import Sweep


def show_sweep(swept: Sweep, path: str, out: Console) -> None:
    """What a sweep left behind, and which cells have nothing to say and why."""
    parts = [f"{path}: {len(swept.rows):,} cells"]
    if swept.reused:
        parts.append(f"{swept.reused:,} of them were there already")
    if swept.dropped:
        parts.append(f"{swept.dropped:,} that were there are not of this grid, or of other code, and are gone")
    out.print(Text("; ".join(parts)), soft_wrap=True)
    reasons = Counter((str(row["policy"]), str(row["skipped"])) for row in swept.rows if row["skipped"] is not None)
    for (name, why), count in reasons.items():
        out.print(Text(f"left out {name} in {count:,} cells: {why}"), soft_wrap=True)
