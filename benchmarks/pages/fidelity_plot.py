"""Draws docs/fidelity.svg: predicted against measured times.

python -m benchmarks.pages.fidelity_plot
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.engine.fidelity import CACHES, RATIOS, known, run_file
from benchmarks.files import ROOT
from sim.studies.fidelity import Fidelity

FIGURE = ROOT / "docs" / "fidelity.svg"


def draw(found: Fidelity, path: Path) -> None:
    """Predicted against measured, one point per policy and run."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "fidelity"
    figure, axes = pyplot.subplots(figsize=(6, 5.2))
    for ratio in RATIOS:
        names = {run_file(ratio, cache).name for cache in CACHES}
        points = [each for each in found.policies if each.run in names]
        measured, predicted = [each.measured_tpot_ms for each in points], [each.predicted_tpot_ms for each in points]
        axes.scatter(measured, predicted, s=12, label=f"link/compute {ratio:g}")
    ends = [
        min(each.measured_tpot_ms for each in found.policies),
        max(each.measured_tpot_ms for each in found.policies),
    ]
    axes.plot(ends, ends, color="grey", linewidth=1)
    axes.fill_between(ends, [0.88 * end for end in ends], [1.12 * end for end in ends], color="grey", alpha=0.15)
    axes.set(xscale="log", yscale="log", xlabel="measured ms per token", ylabel="predicted ms per token")
    axes.legend(title="grey: within 12 %")
    figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    draw(known(), FIGURE)
