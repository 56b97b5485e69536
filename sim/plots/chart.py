"""What a plot shows: lines in panels, picked from the rows of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from sim.sweeps.table import Row, Value
from spmoe.errors import InputError

MOST_PANELS = 24


class Axis(NamedTuple):
    """A column to draw: `scale` times its values are in the unit that the label names."""

    column: str
    title: str
    label: str
    scale: float = 1


X_AXES: Mapping[str, Axis] = MappingProxyType(
    {
        "cache": Axis("cache_share", "cache share", "experts that have slots (% of all)", 100),
        "gamma": Axis("gamma", "gamma", "gamma (tokens drafted per step)"),
        "cutoff": Axis("cutoff", "cutoff layer", "cutoff (leading layers prefetched for)"),
    }
)

Y_AXES: Mapping[str, Axis] = MappingProxyType(
    {
        axis.column: axis
        for axis in (
            Axis("tpot_ms", "TPOT", "time per output token (ms)"),
            Axis("ttft_ms", "TTFT", "time to first token (ms)"),
            Axis("loads_per_token", "Loads", "expert loads per output token"),
            Axis("bytes_per_token", "Bytes loaded", "GB loaded per output token", 1e-9),
            Axis("hit_rate", "Hit rate", "hits (% of needs)", 100),
            Axis("late_rate", "Late rate", "late (% of needs)", 100),
            Axis("prefetch_precision", "Prefetch precision", "used before eviction (% of prefetched loads)", 100),
            Axis("prefetch_recall", "Prefetch recall", "prefetch begun in time (% of needs not resident)", 100),
            Axis("stall_fraction", "Stall", "verifier only waits (% of decode time)", 100),
            Axis("link_utilisation", "Link use", "link transfers (% of decode time)", 100),
            Axis("host_per_token", "CPU work", "experts computed on the CPU per output token"),
            Axis("host_utilisation", "CPU use", "CPU computes (% of decode time)", 100),
            Axis("speedup_vs_on_demand", "Speed-up", "speed-up over on-demand.lru (times)"),
            Axis("vs_bound", "TPOT over bound", "TPOT over the bound of the same windows (times)"),
        )
    }
)


class Point(NamedTuple):
    """In the units of the axes; `feasible`: the machine's memory holds it."""

    x: float
    y: float
    feasible: bool = True


class Line(NamedTuple):
    """The points of one policy, x ascending; `level`: x makes no difference to it."""

    policy: str
    points: tuple[Point, ...]
    level: bool


class Panel(NamedTuple):
    """The lines of what `title` says, and the bound, empty where the policies' bounds differ."""

    title: str
    lines: tuple[Line, ...]
    bound: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """All of a plot.  `subtitle` is what all panels have in common."""

    title: str
    subtitle: str
    x: Axis
    y: Axis
    policies: tuple[str, ...]
    panels: tuple[Panel, ...]

    @property
    def points(self) -> Iterable[Point]:
        """Those of all lines and bounds."""
        for panel in self.panels:
            for line in panel.lines:
                yield from line.points
            yield from panel.bound


def chart(rows: Sequence[Row], x: str, y: str = "tpot_ms", policies: Sequence[str] | None = None) -> Chart:
    """The chart of column `y` against `x` ("cache", "gamma" or "cutoff"): a line per policy, a panel for each
    combination of whatever else the rows differ in.

    Raises InputError, one line, where the rows lack a column, a policy, or a second value of x.
    """
    across, up = X_AXES[x], Y_AXES.get(y, Axis(y, y, y))
    if not rows:
        raise InputError("expected the table of a sweep, got one without rows")
    missing = [name for name in (*_COLUMNS, across.column) if name not in rows[0]]
    if missing:
        raise InputError(f"expected the table of a sweep; there is no column {', '.join(missing)}")
    _check_y(rows, y)
    names = list(dict.fromkeys(str(row["policy"]) for row in rows))
    for name in policies or ():
        if name not in names:
            raise InputError(f"policy {name!r} is not among those of the table: {', '.join(names)}")
    names = list(dict.fromkeys(policies or names))
    shown = [row for row in rows if row["policy"] in names and _is_number(row[y])]
    groups = _panels(shown, x)
    if not any(len({row[across.column] for row in inside} - {None}) > 1 for inside in groups.values()):
        raise InputError(f"expected several values of {across.title} to draw against; sweep with --{x} A B ...")
    if len(groups) > MOST_PANELS:
        raise InputError(
            f"would take {len(groups)} panels, more than {MOST_PANELS}: expected the table of a smaller grid"
        )
    labels = [_labels(inside, x) for inside in groups.values()]
    common = [text for text in labels[0] if all(text in others for others in labels)]
    return Chart(
        title=f"{up.title} against {across.title}",
        subtitle=", ".join(common),
        x=across,
        y=up,
        policies=tuple(name for name in names if any(row["policy"] == name for row in shown)),
        panels=tuple(
            Panel(
                ", ".join(text for text in texts if text not in common),
                tuple(_lines(inside, names, across, up)),
                _bound(inside, across, up),
            )
            for texts, inside in zip(labels, groups.values(), strict=True)
        ),
    )


_DIMENSIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "trace": ("trace", "trace_digest"),
        "bits": ("bits",),
        "hardware": ("hardware", "hardware_digest"),
        "cache": ("room",),
        "gamma": ("gamma",),
        "cutoff": ("cutoff_asked",),
    }
)
"""What panels may differ in, and the columns that tell them apart."""

_COLUMNS = (
    *(name for names in _DIMENSIONS.values() for name in names),
    "policy",
    "skipped",
    "source",
    "model",
    "hardware_kind",
    "cache_share",
    "feasible",
)

_LABELS: Mapping[str, Callable[[Row], str]] = MappingProxyType(
    {
        "trace": lambda row: f"{row['trace']} ({row['source']})",
        "bits": lambda row: f"{row['model']} at {row['bits']:g} bits",
        "hardware": lambda row: f"{row['hardware']} ({row['hardware_kind']})",
        "cache": lambda row: f"slots for {row['cache_share']:.0%} of experts",
        "gamma": lambda row: f"gamma {row['gamma']}",
    }
)


def _check_y(rows: Sequence[Row], y: str) -> None:
    if y not in rows[0] or not any(_is_number(row[y]) for row in rows):
        numbers = [name for name in rows[0] if any(_is_number(row[name]) for row in rows)]
        raise InputError(f"no numbers in a column {y!r}; there are {', '.join(numbers)}")


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _panels(rows: Sequence[Row], x: str) -> dict[tuple[Value, ...], list[Row]]:
    """The rows of each panel.  A policy without a cutoff stands in the panels of all cutoffs."""
    fixed = [name for dimension, names in _DIMENSIONS.items() if dimension not in (x, "cutoff") for name in names]
    panels: dict[tuple[Value, ...], list[Row]] = {}
    for row in rows:
        panels.setdefault(tuple(row[name] for name in fixed), []).append(row)
    if x == "cutoff":
        return panels
    return {
        (*key, asked): [row for row in inside if row["cutoff_asked"] in (asked, None)]
        for key, inside in panels.items()
        for asked in _asked(inside)
    }


def _asked(rows: Sequence[Row]) -> list[Value]:
    """The cutoffs asked for, None alone where no policy has one."""
    return list(dict.fromkeys(row["cutoff_asked"] for row in rows if row["cutoff_asked"] is not None)) or [None]


def _labels(rows: Sequence[Row], x: str) -> list[str]:
    texts = [label(rows[0]) for dimension, label in _LABELS.items() if dimension != x]
    asked = None if x == "cutoff" else _asked(rows)[0]
    if asked is not None:
        texts.append(f"{asked} cutoff" if asked in ("analytical", "best") else f"cutoff {asked}")
    return texts


def _lines(rows: Sequence[Row], names: Sequence[str], across: Axis, up: Axis) -> Iterable[Line]:
    xs = sorted({_scaled(row, across) for row in rows if row[across.column] is not None})
    for name in names:
        mine = [row for row in rows if row["policy"] == name]
        level = bool(mine) and all(row[across.column] is None for row in mine)
        points = {
            at: Point(at, _scaled(row, up), row["feasible"] is not False)
            for row in mine
            for at in (xs if level else [_scaled(row, across)])
        }
        if points:
            yield Line(name, tuple(points[at] for at in sorted(points)), level)


def _bound(rows: Sequence[Row], across: Axis, up: Axis) -> tuple[Point, ...]:
    """The bound's line, where there is one of `up` and it is the same for all policies."""
    bound = Axis(f"bound_{up.column}", up.title, up.label, up.scale)
    found: dict[float, set[float]] = {}
    for row in rows:
        if not _is_number(row.get(bound.column)):
            return ()
        if row[across.column] is not None:
            found.setdefault(_scaled(row, across), set()).add(_scaled(row, bound))
    if any(len(values) > 1 for values in found.values()):
        return ()
    return tuple(Point(at, min(found[at])) for at in sorted(found))


def _scaled(row: Row, axis: Axis) -> float:
    value = row[axis.column]
    assert isinstance(value, int | float)
    return value * axis.scale
