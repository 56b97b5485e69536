"""The loss curves of a run, as CSV and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from spmoe.files import atomic_write
from training.states import Row

POINTS = 80
"""Of a stage's line, about: each the mean of as many steps."""
COLOURS = ("#0072B2", "#009E73", "#D55E00")


def write_csv(path: Path, curves: Mapping[str, Sequence[Row]]) -> None:
    """A line per stage and step: loss in nats per token, the balance loss (mean of layers) where there are experts."""
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("stage", "step", "loss", "balance"))
        for stage, rows in curves.items():
            for row in rows:
                balance = "" if row.balance is None else f"{row.balance:.5f}"
                writer.writerow((stage, row.step, f"{row.loss:.5f}", balance))


def draw(path: Path, curves: Mapping[str, Sequence[Row]], first: Mapping[str, int], step_tokens: int) -> None:
    """A PNG: the loss against the tokens that the model has learned from; `first` is the stage's first step."""
    from matplotlib.figure import Figure  # Slow to import.

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for colour, (stage, rows) in zip(COLOURS, curves.items(), strict=False):
        size = max(1, len(rows) // POINTS)
        points = [rows[at : at + size] for at in range(0, len(rows), size)]
        tokens = [(first[stage] + part[-1].step + 1) * step_tokens / 1e6 for part in points]
        losses = [sum(row.loss for row in part) / len(part) for part in points]
        axes.plot(tokens, losses, color=colour, label=stage)
    axes.set_xlabel("tokens, millions")
    axes.set_ylabel("training loss, nats per token")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.legend(frameon=False)
    with atomic_write(path, binary=True) as stream:
        figure.savefig(stream, format="png", dpi=160)
