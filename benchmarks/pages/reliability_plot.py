"""Draws docs/prediction-reliability.svg: how often forecasts come true, by their probability.

python -m benchmarks.pages.reliability_plot
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.files import ROOT, read_json
from benchmarks.sim.prediction import RESULT
from sim.plots.plot import COLOURS, MARKERS
from sim.plots.plot import SETTINGS as STYLE
from spmoe.files import atomic_write

FIGURE = ROOT / "docs" / "prediction-reliability.svg"


def layers_of(group: Mapping[str, Any]) -> str:
    """The layers of a group."""
    first, last = group["first_layer"], group["last_layer"]
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def draw(groups: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The reliability of groups of layers as SVG; the same groups give the same bytes with the same matplotlib."""
    import matplotlib.style  # Slow to import.
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(8.4, 3.8), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, name, title in zip(
            panels, ("first", "used"), ("is the first of those used", "is among those used"), strict=True
        ):
            axes.plot((0, 1), (0, 1), color="#555555", linestyle="--", linewidth=1, label="as often as it says")
            for group, colour, marker in zip(groups, COLOURS, MARKERS, strict=False):
                points = [(each["mean"], each[name]) for each in group["bins"]]
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=layers_of(group))
            axes.set_title(f"the expert named first {title}", fontsize=9)
            axes.set_xlabel("probability that the router gives it")
        panels[0].set_ylabel("share of forecasts that come true")
        panels[1].legend(loc="lower right", frameon=False)
        with atomic_write(path, binary=True) as stream:
            figure.savefig(stream, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(read_json(RESULT)["pair"]["reliability"], FIGURE)
