"""What a study of forecasts looks like in a terminal: a table per source, side by side where there is room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.cli.console import NOTHING
from sim.studies.forecasts import ForecastStudy, Row
from spmoe.machine.units import format_ms
from spmoe.trace.accuracy import TOKEN_BEFORE
from spmoe.trace.reliability import BINS


class Column(NamedTuple):
    """A field of the rows and its heading."""

    field: str
    heading: str
    percent: bool = False

    def text(self, row: Row) -> str:
        """The row's cell: a percentage, or some three significant digits."""
        value = row.get(self.field)
        if value is None:
            return NOTHING
        if self.percent:
            return f"{100 * value:.1f}"
        return f"{value:.{1 if value >= 100 else 2 if value >= 10 else 3}f}"


COLUMNS: Final = (
    Column("top1_used", "top-1", percent=True),
    Column("top1_exact", "exact", percent=True),
    Column("recall", "recall", percent=True),
    Column("recall_one_more", "+1", percent=True),
    Column("window_top1", "win-1", percent=True),
    Column("window_topk", "win-k", percent=True),
    Column("lead_ms", "lead"),
    Column("lead_loads", "loads"),
    Column("last_lead_ms", "last"),
    Column("busy_lead_ms", "busy"),
    Column("busy_lead_loads", "loads"),
)

TITLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "draft": "draft",
        "next_gate": "next layer's gate",
        "popularity": "most used by other requests",
        "token_before": "as the token before",
    }
)


def show_forecasts(study: ForecastStudy, out: Console) -> None:
    """What the numbers stand for, the tables, and what has to be known to read them."""
    for line in heads(study):
        out.print(Text(line), soft_wrap=True)
    out.print(Columns([_source_table(study, source) for source in study.accuracy.layers], padding=(1, 3)))
    for line in legend(len(study.accuracy.layers[TOKEN_BEFORE])):
        out.print(Text(line), soft_wrap=True)
    out.print()
    out.print(Text("used, in %, by the probability of the expert named first:"), soft_wrap=True)
    out.print(_reliability_table(study))
    for line in study.notes():
        out.print(Text(line), soft_wrap=True)


def heads(study: ForecastStudy) -> Iterator[str]:
    """Which trace, what its forecasts are, and where the lead times come from."""
    trace, accuracy = study.trace, study.accuracy
    yield (
        f"{trace.title} ({trace.source}, {trace.tokens:,} tokens of {trace.model}), "
        f"gamma {accuracy.gamma}: {accuracy.inputs:,} inputs, {accuracy.windows:,} windows"
    )
    for name, origin in study.origins.items():
        if origin.kind == "drawn":
            rate = "" if origin.accuracy is None else f" at an accuracy of {origin.accuracy:.1%}"
            yield f"{name}: drawn{rate}; how good it is was put in, not found out"
        else:
            yield f"{name}: recorded"
    for name, timing in study.timings.items():
        layers = "" if timing.cutoff is None else f" with a cutoff at {timing.cutoff} of {timing.config.layers} layers"
        load = "" if timing.load_ns is None else f"; a load takes {format_ms(round(timing.load_ns))}"
        if study.log is not None:
            yield f"lead times: the log {study.log} of a run of {timing.config.recipe}{layers}{load}"
            break
        yield f"lead times of {name}: a replay of {timing.config.recipe}{layers}{load}"
    if study.setting is not None:
        yield f"replayed on {study.setting.describe()}"


def legend(layers: int) -> Iterator[str]:
    """What the columns are, and the row of means."""
    yield (
        "in %: top-1, the expert named first is used; exact, and is ranked first; recall, of the experts used, those "
        "among as many named (+1: among one more)"
    )
    yield (
        "win-1, win-k, of the distinct experts that a window needs in %: those named first, or among the first top-k, "
        "before it is verified"
    )
    yield (
        "lead, in ms, from the report until the layer's router has spoken, waits included: mean over all reports; "
        "last: over each step's last ones; busy: over all, without the waits; loads: over the time of one load"
    )
    if layers > 1:
        yield f"mean: over layers 1 to {layers - 1}, for layer 0 says little of the others"


def _source_table(study: ForecastStudy, source: str) -> Table:
    rows, summary = study.rows(source), study.summary(source)
    shown = [column for column in COLUMNS if _is_shown(column, source, rows)]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.title, table.title_justify = TITLES[source], "left"
    for heading in ("layer", *(column.heading for column in shown)):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(str(row["layer"]), *(column.text(row) for column in shown))
    table.add_row("mean", *(column.text(summary) for column in shown), style="italic")
    return table


def _is_shown(column: Column, source: str, rows: tuple[Row, ...]) -> bool:
    """The next layer's gate reports once, so its last report is its only one; and nobody reads an empty column."""
    if source == "next_gate" and column.field == "last_lead_ms":
        return False
    return any(row.get(column.field) is not None for row in rows)


def _reliability_table(study: ForecastStudy) -> Table:
    """Per bin of probability, how often what was named first is used, and how many such forecasts there are."""
    found = study.accuracy.reliability
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("probability", no_wrap=True)
    for name in found:
        table.add_column(name, justify="right", no_wrap=True)
        table.add_column("cells", justify="right", no_wrap=True)
    for number, bins in enumerate(zip(*(each.bins for each in found.values()), strict=True)):
        cells = [
            text
            for each in bins
            for text in (f"{100 * each.used / each.cells:.1f}" if each.cells else NOTHING, f"{each.cells:,}")
        ]
        table.add_row(f"{number / BINS:.1f}-{(number + 1) / BINS:.1f}", *cells)
    errors = [each.used_error for each in found.values()]
    texts = [NOTHING if error is None else f"{error:.3f}" for error in errors]
    table.add_row("calibration error", *(text for each in texts for text in (each, "")), style="italic")
    return table
