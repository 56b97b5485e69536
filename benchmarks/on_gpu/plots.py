"""Figures of what was measured, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.files import NOT_ON_A_GPU
from spmoe.files import atomic_write


def draw(folder: Path) -> Iterator[str]:
    """Draws what the files there have; says what it drew, or why it did not."""
    if importlib.util.find_spec("matplotlib") is None:
        yield "figures: matplotlib is not installed; later: python -m benchmarks.on_gpu.plots DIR"
        return
    for name, figure in (("link", _link), ("fidelity", _fidelity)):
        document = _read(folder / f"{name}.json")
        if document is not None and "left_out" not in document["result"]:
            target = folder / f"{name}.png"
            with atomic_write(target, binary=True) as stream:
                figure(document).savefig(stream, format="png", dpi=80, metadata={"Software": None})
            yield f"figures: {target.name}"


def _read(path: Path) -> Any:
    """None where there is no result."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if document.get("state") == "done" else None


def _axes(document: Any, title: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    where = document["machine"] if document["device"] == "cuda" else f"{document['machine']}\n{NOT_ON_A_GPU}"
    axes.set_title(f"{title}\n{where}", fontsize=9)
    return figure, axes


def _link(document: Any) -> Any:
    figure, axes = _axes(document, "Host to device: the engine's link beside bare copies of the same bytes")
    batches = document["result"]["batches"]
    for neighbours, marker in ((True, "o"), (False, "x")):
        chosen = sorted((each for each in batches if each["neighbours"] is neighbours), key=lambda each: each["bytes"])
        for way, colour in (("link", "C0"), ("bare", "C1")):
            kind = "in one copy" if neighbours else "copied row by row"
            axes.plot(
                [each["bytes"] / 1e6 for each in chosen],
                [each[f"{way}_gb_per_s"] for each in chosen],
                marker=marker,
                color=colour,
                linestyle="-" if neighbours else "none",
                label=f"{way}, {kind}",
            )
    axes.set(xscale="log", xlabel="MB per batch", ylabel="GB/s", ylim=(0, None))
    axes.legend(fontsize=8)
    return figure


def _fidelity(document: Any) -> Any:
    figure, axes = _axes(document, "Time per output token of policies: simulated beside measured")
    rows = document["result"]["policies"]
    for number, run in enumerate(dict.fromkeys(row["run"] for row in rows)):
        chosen = [row for row in rows if row["run"] == run]
        measured = [row["measured_tpot_ms"] for row in chosen]
        label = run.removeprefix("run-").removesuffix(".json")
        axes.errorbar(
            measured,
            [row["predicted_tpot_ms"] for row in chosen],
            xerr=[row["measured_tpot_ms"] * row["spread"] for row in chosen],
            fmt="o",
            color=f"C{number}",
            label=label,
        )
        for row in chosen:
            axes.annotate(row["policy"], (row["measured_tpot_ms"], row["predicted_tpot_ms"]), fontsize=6)
    ends = [
        bound(row[key] for row in rows for key in ("measured_tpot_ms", "predicted_tpot_ms")) for bound in (min, max)
    ]
    axes.plot(ends, ends, color="grey", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="predicted, ms")
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    import sys

    for line in draw(Path(sys.argv[1])):
        print(line)
