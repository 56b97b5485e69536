"""What a replay looks like in a terminal."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from sim.cli.policies import details
from sim.replay import Replay
from sim.runner import Progress as Told
from sim.studies.cutoff import CutoffStudy
from sim.studies.fidelity import Fidelity
from sim.sweeps.sweep import Sweep
from spmoe.machine.units import format_ms
from spmoe.policy.recipe import Recipe
from spmoe.results.bound import Bound
from spmoe.results.result import Result
from spmoe.run.setting import Setting
from spmoe.scheduler.config import even_window
from spmoe.trace.schema import Header
from spmoe.trace.summary import TraceSummary

WIDTH = 132
"""Columns where the output is no terminal: enough for every table, so that nothing is cut off in a file or pipe."""

NOTHING = "-"

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


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Left to the command line, which knows what a reader that went away means."""
        raise BrokenPipeError


def console(stream: TextIO) -> Console:
    """A console that keeps its tables whole where it does not write to a terminal."""
    return _Console(file=stream, width=None if stream.isatty() else WIDTH, highlight=False, soft_wrap=False)


@contextmanager
def progress_bar(total: int, unit: str) -> Iterator[Told | None]:
    """A bar on standard error while the block runs; None, and no bar, where that is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("", total=total)

        def told(name: str, done: int) -> None:
            bar.update(task, advance=done, description=name)

        yield told


def show_replay(replay: Replay, out: Console) -> None:
    """The line above the table, the table, and what has to be known to read it."""
    setting, trace = replay.setting, replay.trace
    name = trace["name"] or trace["what"]
    title = f"{name} ({trace['source']}, {trace['tokens']:,} tokens of {trace['model']}), {setting.describe()}"
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
    if replay.trace["source"] == "synthetic":
        yield "the trace is synthetic: it compares policies, it does not measure a model"
    for name, why in replay.skipped.items():
        yield f"left out {name}: {why}"


def show_policies(policies: Sequence[Recipe], long: bool, out: Console) -> None:
    """A line per policy, or all parts of each."""
    if not long:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for one in policies:
            table.add_row(one.name, Text(one.summary))
        out.print(table)
        out.print(Text("(in full: --long, or names or patterns)"))
        return
    for number, one in enumerate(policies):
        if number:
            out.print()
        out.print(Text(one.name, style="bold"))
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for label, text in details(one):
            table.add_row(f"  {label}", Text(text))
        out.print(table)


def show_cutoff(study: CutoffStudy, out: Console) -> None:
    """Both cutoffs with their reasons, then the sweep."""
    name = study.trace["name"] or study.trace["what"]
    out.print(
        Text(f"{study.recipe.name} on {name}, {study.setting.describe()}, gamma {study.setting.gamma}"), soft_wrap=True
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
            _number(metrics.tpot_ms, ".2f"),
            _number(metrics.loads_per_token, ".2f"),
            _number(metrics.prefetch_precision, ".0%"),
            _number(metrics.prefetch_recall, ".0%"),
            _number(metrics.stall_fraction, ".0%"),
            ", ".join(marks),
        )
    out.print(table)


def show_fidelity(found: Fidelity, out: Console) -> None:
    """Every policy of every run, then what it comes to."""
    for run in found.runs():
        table = Table(box=None, pad_edge=False, header_style="bold", title=run.policies[0].run, title_justify="left")
        table.add_column("policy", no_wrap=True)
        for heading in ("predicted ms", "measured ms", "spread", "error"):
            table.add_column(heading, justify="right")
        for each in sorted(run.policies, key=lambda each: each.measured_tpot_ms):
            table.add_row(
                each.policy,
                f"{each.predicted_tpot_ms:,.2f}",
                f"{each.measured_tpot_ms:,.2f}",
                f"{each.spread:.1%}",
                f"{each.error:+.1%}",
            )
        out.print(table)
        out.print(Text(_fidelity(run)), soft_wrap=True)
    if len(list(found.runs())) > 1:
        out.print(Text(f"all runs: {_fidelity(found)}"), soft_wrap=True)


def _fidelity(found: Fidelity) -> str:
    worst, tau = found.worst, found.kendall_tau
    ranking = "no pair of policies differs by more than the spread" if tau is None else f"Kendall's tau {tau:.3f}"
    verdict = "as close as is asked for" if found.on_target else "not as close as is asked for"
    return (
        f"median error {found.median_error:.1%}, largest {found.max_error:.1%} ({worst.policy}), {ranking}: {verdict}"
    )


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


def show_cost(setting: Setting, out: Console) -> None:
    """The items of one layer of a full window, of a load and of a draft token."""
    window = setting.gamma + 1
    touched, tokens = even_window(setting.geometry, window)
    out.print(Text(f"{setting.geometry.name} on {setting.describe()}"), soft_wrap=True)
    out.print(
        Text(
            f"one layer for {window} tokens after {setting.longest_request:,}, with {round(touched)} experts of "
            f"{tokens} tokens each (what an even choice gives), all resident:"
        ),
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("item")
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("from")
    for item in setting.cost.explain(window, setting.longest_request, (tokens,) * round(touched)):
        table.add_row(item.name, format_ms(item.ns), Text(item.formula))
    out.print(table)


def show_summary(header: Header, summary: TraceSummary, out: Console) -> None:
    """What a trace holds."""
    model, source = header.model, header.source
    table = Table(box=None, show_header=False, pad_edge=False)
    rows = [
        ("model", f"{model.name}: {model.layers} MoE layers of {model.experts} experts, top-{model.top_k}"),
        ("draft", header.draft.name if header.draft else "none"),
        ("source", f"{source.kind}: {source.what}{f' ({source.when})' if source.when else ''}"),
        ("how", source.how),
        (
            "tokens",
            f"{summary.tokens:,} in {summary.requests:,} requests, {summary.prefills:,} of them with a prefill line",
        ),
        ("longest request", f"{summary.longest_request:,} tokens, prompt included"),
        ("agreement", f"{summary.agreement:.1%} of the draft's next tokens"),
        ("missing cells", f"{summary.empty_cells:,} of {summary.tokens * model.layers:,} (token, layer)"),
        ("experts used", f"{summary.distinct_experts:.1f} of {model.experts} per layer"),
        ("rejected inputs", f"{summary.rejected_inputs:,} recorded"),
    ]
    for name, forecast in summary.forecasts.items():
        right = _number(forecast.first_rank_accuracy, ".1%")
        kind = header.forecasts[name].kind
        rows.append(
            (f"forecast {name}", f"{kind}; for {forecast.coverage:.0%} of the cells, first expert right {right}")
        )
    for label, text in rows:
        table.add_row(label, Text(text))
    out.print(table)


def _cells(result: Result) -> list[str]:
    metrics = result.metrics
    needs = metrics.needs or 1
    shares = "/".join(f"{100 * part / needs:.0f}" for part in (metrics.hits, metrics.late, metrics.misses))
    return [
        result.recipe.name,
        _number(metrics.tpot_ms, ".1f"),
        _number(result.speedup, ".2f", "x"),
        _number(result.vs_bound, ".2f"),
        _number(metrics.loads_per_token, ".2f"),
        shares,
        _number(metrics.prefetch_precision, ".0%"),
        _number(metrics.prefetch_recall, ".0%"),
        _number(metrics.stall_fraction, ".0%"),
        _number(metrics.link_utilisation, ".0%"),
        _number(metrics.host_utilisation or None, ".0%"),
    ]


def _bound_cells(bound: Bound, results: tuple[Result, ...]) -> list[str]:
    on_demand = next((result.on_demand_ms for result in results), None)
    hits = 100 * (bound.hit_rate or 0)
    return [
        "bound",
        f"{bound.tpot_ms:.1f}",
        _number(on_demand / bound.tpot_ms if on_demand else None, ".2f", "x"),
        "1.00",
        f"{bound.loads_per_token:.2f}",
        f"{hits:.0f}/0/{100 - hits:.0f}",
        NOTHING,
        NOTHING,
        NOTHING,
        _number(bound.link_utilisation, ".0%"),
        NOTHING,
    ]


def _number(value: float | None, form: str, unit: str = "") -> str:
    return NOTHING if value is None else f"{value:{form}}{unit}"
