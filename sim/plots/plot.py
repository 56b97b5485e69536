"""Draws charts with matplotlib, as PNG or SVG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sim.plots.chart import Chart, Panel, Point, chart
from sim.sweeps.table import read_table
from spmoe.errors import InputError
from spmoe.files import atomic_write, check_distinct

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
"""Told apart with every common colour blindness (Okabe and Ito 2008, less yellow and black; wine of Tol 2021)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "*", "p", "d")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
"""Each for as many policies as there are colours, so that no two lines look alike."""

BOUND = "bound (fetch only)"
NOTE = "hollow: beyond the memory"

LOG_FROM = 10
"""Values further apart than this many times get a logarithmic axis."""
MOST_TICKS = 9
MOST_MARKERS = 12

SETTINGS: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "spmoe",
}


class Style(NamedTuple):
    """How the line of a policy looks; sizes in points."""

    colour: str
    marker: str
    dash: Any
    width: float
    size: float


def style(number: int, count: int) -> Style:
    """The look of the policy with this number, of `count`: no two of the first 91 share colour and marker.

    The first are the largest, so that a line is seen under another of the same values.
    """
    colours = len(COLOURS)
    share = number / max(1, count - 1)
    return Style(
        COLOURS[number % colours],
        MARKERS[number % len(MARKERS)],
        DASHES[number // colours % len(DASHES)],
        width=2.6 - 1.6 * share,
        size=8.5 - 4 * share,
    )


def plot(
    results: str | os.PathLike[str],
    x: str,
    y: str = "tpot_ms",
    *,
    policies: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Path:
    """Draw column `y` of a sweep's table against `x` ("cache", "gamma" or "cutoff") and return the file's path.

    `out` ends in .png or .svg; by default it is a PNG beside `results`.  The same table gives the same bytes with the
    same matplotlib.  Raises InputError, one line, for whatever is wrong with table or arguments, and where matplotlib
    is missing.
    """
    source = Path(results)
    if not source.name:
        raise InputError(f"{source}: expected the table that a sweep wrote, a .csv or .parquet file")
    target = source.with_name(f"{source.stem}-{x}.png") if out is None else Path(out)
    if target.suffix not in FORMATS:
        raise InputError(f"{target}: expected a name that ends in {' or '.join(FORMATS)}")
    check_distinct(results=results, out=target)
    try:
        import matplotlib.style  # Slow to import, and an extra: only plots need it.
    except ImportError:
        raise InputError("plots need matplotlib: pip install 'spmoe[plot]'") from None
    try:
        drawn = chart(read_table(source), x, y, policies)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(str(source)) else f"{source}: {text}") from None
    # Not what a user has in a matplotlibrc: the same bytes everywhere.
    with matplotlib.style.context(["default", SETTINGS]), atomic_write(target, binary=True) as stream:
        figure(drawn).savefig(
            stream,
            format=target.suffix[1:],
            dpi=160,
            metadata={"Date": None} if target.suffix == ".svg" else None,
        )
    return target


def figure(drawn: Chart) -> Figure:
    """The figure of a chart: panels in rows, one legend to the right of them."""
    from matplotlib.figure import Figure

    panels = len(drawn.panels)
    across = panels if panels <= 3 else 2 if panels == 4 else 3
    down = -(-panels // across)
    wide, high = (6.2, 4.2) if panels == 1 else (4.0, 3.2)
    names = max(map(len, (*drawn.policies, NOTE)))
    size = (across * wide + 0.5 + 0.075 * names, max(down * high, 0.2 * (len(drawn.policies) + 3)) + 0.7)
    whole = Figure(figsize=size, layout="constrained")
    cells = whole.subplots(down, across, sharey=True, squeeze=False)
    legend: dict[str, Artist] = {}
    styles = {name: style(number, len(drawn.policies)) for number, name in enumerate(drawn.policies)}
    for axes, panel in zip(cells.flat, drawn.panels, strict=False):
        legend |= _draw(axes, panel, styles)
    upright = f"{drawn.y.label}, log scale" if _scale(drawn, cells.flat[0]) else drawn.y.label
    for number, axes in enumerate(cells.flat):
        if number >= panels:
            axes.set_visible(False)
            continue
        _ticks(axes, drawn.panels[number], drawn)
        axes.set_xlabel(drawn.x.label)
        if number % across == 0:
            axes.set_ylabel(upright)
    whole.suptitle(f"{drawn.title}\n{drawn.subtitle}" if drawn.subtitle else drawn.title, fontsize=10)
    order = [name for name in (*drawn.policies, BOUND, NOTE) if name in legend]
    whole.legend([legend[name] for name in order], order, loc="outside right center", frameon=False, handlelength=3.2)
    return whole


def _draw(axes: Axes, panel: Panel, styles: dict[str, Style]) -> dict[str, Artist]:
    """The lines of a panel; returns what stands for them in the legend, by label."""
    from matplotlib.lines import Line2D

    legend: dict[str, Artist] = {}
    for line in panel.lines:
        look = styles[line.policy]
        points = line.points
        step = max(1, len(points) - 1) if line.level else -(-len(points) // MOST_MARKERS)
        axes.plot(*_xy(points), color=look.colour, linestyle=look.dash, linewidth=look.width)
        marks: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": look.size}
        for feasible, inside in ((True, look.colour), (False, "white")):
            axes.plot(
                *_xy([point for point in points[::step] if point.feasible is feasible]),
                markerfacecolor=inside,
                linestyle="none",
                **marks,
            )
        legend[line.policy] = Line2D([], [], linestyle=look.dash, linewidth=look.width, **marks)
        if not all(point.feasible for point in points):
            legend[NOTE] = Line2D([], [], color="#555555", marker="o", markerfacecolor="white", linestyle="none")
    if panel.bound:
        (legend[BOUND],) = axes.plot(*_xy(panel.bound), color="black", linestyle="--", linewidth=1.2, zorder=1.5)
    axes.set_title(panel.title, fontsize=9)
    return legend


def _xy(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.x for point in points], [point.y for point in points]


def _scale(drawn: Chart, axes: Axes) -> bool:
    """Sets the y axis, which all panels share: from zero, or logarithmic (True) where values are far apart."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    values = [point.y for point in drawn.points]
    if min(values) > 0 and max(values) > LOG_FROM * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        return True
    if min(values) >= 0:
        axes.set_ylim(bottom=0)
    return False


def _ticks(axes: Axes, panel: Panel, drawn: Chart) -> None:
    """Ticks at the values that were swept, where they are few."""
    from matplotlib.ticker import MaxNLocator

    xs = sorted({point.x for line in panel.lines for point in line.points})
    if len(xs) <= MOST_TICKS:
        axes.set_xticks(xs, [f"{at:.3g}" for at in xs])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=drawn.x.column != "cache_share"))
