"""The cutoff layers of a policy, and what each comes to."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.cli.console import number
from sim.studies.cutoff import CutoffStudy


def show_cutoff(study: CutoffStudy, out: Console) -> None:
    """Both cutoffs with their reasons, then the sweep."""
    out.print(
        Text(f"{study.recipe.name} on {study.trace.title}, {study.setting.describe()}, gamma {study.setting.gamma}"),
        soft_wrap=True,
    )
    for line in study.explain():
        out.print(Text(line), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("cutoff", "TPOT ms", "loads/token", "precision", "recall", "stall"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for layers, metrics in study.sweep:
        marks = [
            word for word, at in (("analytical", study.analytical.layers), ("best", study.empirical)) if at == layers
        ]
        table.add_row(
            str(layers),
            number(metrics.tpot_ms, ".2f"),
            number(metrics.loads_per_token, ".2f"),
            number(metrics.prefetch_precision, ".0%"),
            number(metrics.prefetch_recall, ".0%"),
            number(metrics.stall_fraction, ".0%"),
            ", ".join(marks),
        )
    out.print(table)
