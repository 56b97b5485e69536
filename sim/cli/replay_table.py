"""The table of a replay, and the notes below it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from sim.cli.console import NOTHING, WIDTH, number
from sim.prepared import Replay
from spmoe.results.bound import Bound
from spmoe.results.result import Result

HEADINGS = (
    "policy",
    "TPOT ms",
    "speed-up",
    "x bound",
    "loads/token",
    "hit/late/miss %",
    "precision",
    "recall",
    "stall",
    "link",
    "CPU",
)
COLUMNS = (len(HEADINGS), 6, 5, 4)
"""How many of them may be shown; the most that there is room for."""


def show_replay(replay: Replay, out: Console) -> None:
    """The line above the table, the table, and what has to be known to read it."""
    setting, trace = replay.setting, replay.trace
    title = f"{trace.title} ({trace.source}, {trace.tokens:,} tokens of {trace.model}), {setting.describe()}"
    out.print(Text(f"{title}, gamma {setting.gamma}"), soft_wrap=True)
    # A narrow terminal gets fewer columns rather than broken ones.
    shown = next((count for count in COLUMNS if _width(replay, count, out) <= out.width), COLUMNS[-1])
    out.print(_replay_table(replay, shown))
    if shown < len(HEADINGS):
        width = _width(replay, len(HEADINGS), out)
        out.print(Text(f"({', '.join(HEADINGS[shown:])}: from {width} columns on)"), soft_wrap=True)
    for line in notes(replay):
        out.print(Text(line), soft_wrap=True)


def _replay_table(replay: Replay, columns: int) -> Table:
    """One row per policy and one for the bound; the first columns of them."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for heading in HEADINGS[:columns]:
        table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    for result in replay.results:
        table.add_row(*_cells(result)[:columns])
    table.add_row(*_bound_cells(replay.bound, replay.results)[:columns], style="italic")
    return table


def _width(replay: Replay, columns: int, out: Console) -> int:
    """The width that the table takes with so many columns."""
    return Measurement.get(out, out.options.update(max_width=10 * WIDTH), _replay_table(replay, columns)).maximum


def notes(replay: Replay) -> Iterable[str]:
    """How the budget and the cutoff came about, who was left out and why, and what the numbers stand on."""
    yield f"budget: {replay.setting.explain()}"
    for name, layers in replay.cutoffs.items():
        yield f"cutoff of {name}: {layers} of {replay.setting.geometry.layers} layers ({replay.cutoff_choice})"
    for result in replay.results:
        if result.lengths:
            mean = sum(result.lengths) / len(result.lengths)
            yield (
                f"{result.recipe.name} chose how much to draft: {mean:.1f} tokens per step, at most "
                f"{replay.setting.gamma_max}; its bound is that of its own windows"
            )
    plain = [one.recipe.name for one in replay.results if one.recipe.speculation.gamma(1) == 0]
    if plain and replay.setting.gamma:
        yield f"without speculation, and with the bound of plain decoding: {', '.join(plain)}"
    if replay.bound.stand_ins:
        yield (
            f"rejected draft tokens: the trace does not hold {replay.bound.stand_ins:,} inputs that followed one; the "
            "tokens that really stand at those positions took their places"
        )
    if replay.trace.source == "synthetic":
        yield "the trace is synthetic: it compares policies, it does not measure a model"
    for name, why in replay.skipped.items():
        yield f"left out {name}: {why}"


def _cells(result: Result) -> list[str]:
    metrics = result.metrics
    needs = metrics.needs or 1
    shares = "/".join(f"{100 * part / needs:.0f}" for part in (metrics.hits, metrics.late, metrics.misses))
    return [
        result.recipe.name,
        number(metrics.tpot_ms, ".1f"),
        number(result.speedup, ".2f", "x"),
        number(result.vs_bound, ".2f"),
        number(metrics.loads_per_token, ".2f"),
        shares,
        number(metrics.prefetch_precision, ".0%"),
        number(metrics.prefetch_recall, ".0%"),
        number(metrics.stall_fraction, ".0%"),
        number(metrics.link_utilisation, ".0%"),
        number(metrics.host_utilisation or None, ".0%"),
    ]


def _bound_cells(bound: Bound, results: tuple[Result, ...]) -> list[str]:
    on_demand = next((result.on_demand_ms for result in results), None)
    hits = 100 * (bound.hit_rate or 0)
    return [
        "bound",
        f"{bound.tpot_ms:.1f}",
        number(on_demand / bound.tpot_ms if on_demand else None, ".2f", "x"),
        "1.00",
        f"{bound.loads_per_token:.2f}",
        f"{hits:.0f}/0/{100 - hits:.0f}",
        NOTHING,
        NOTHING,
        NOTHING,
        number(bound.link_utilisation, ".0%"),
        NOTHING,
    ]
