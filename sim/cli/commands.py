"""The commands of `python -m sim`: from parsed options to tables and files."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Final

from rich.console import Console

from sim.cli.console import console
from sim.cli.cost_table import show_cost
from sim.cli.cutoff_table import show_cutoff
from sim.cli.fidelity_table import show_fidelity
from sim.cli.forecast_tables import show_forecasts
from sim.cli.policy_table import show_policies
from sim.cli.replay_table import show_replay
from sim.cli.sweep_summary import show_sweep
from sim.cli.trace_summary import show_summary
from sim.plots.plot import plot
from sim.pool import check_jobs
from sim.prepared import BASELINE
from sim.replay import replay
from sim.studies.cutoff import study_cutoff
from sim.studies.fidelity import fidelity
from sim.studies.forecasts import forecasts
from sim.sweeps.grid import grid
from sim.sweeps.sweep import count_done, run_sweep
from sim.sweeps.table import check_format
from spmoe.cli import Commands, fields_given, json_output, named_file
from spmoe.errors import InputError
from spmoe.files import atomic_write, check_distinct
from spmoe.machine.geometry import draft_model, geometry
from spmoe.policy.registry import recipe, select
from spmoe.progress import progress_bar
from spmoe.results.run import read_run
from spmoe.results.timeline import TimelineWriter
from spmoe.run.applicability import obstacle_of_output
from spmoe.run.options import RunOptions
from spmoe.run.setting import resolve_setting
from spmoe.trace.bundled import bundled_trace
from spmoe.trace.draws import Rates
from spmoe.trace.importers import import_trace
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import DraftShape, ModelShape
from spmoe.trace.summary import summarise
from spmoe.trace.writer import write_trace

WORTH_SPREADING: Final = 10_000
"""Tokens to replay, over all policies, from which on other processes are sooner done than they are started."""


def run_policies(options: argparse.Namespace) -> None:
    """Say what policies there are, or all about some of them."""
    chosen = select(options.policy or "all")
    show_policies(chosen, bool(options.policy) or options.long, console(sys.stdout))


def run_replay(options: argparse.Namespace) -> None:
    """Replay a trace, print the table, write what was asked for."""
    for name in options.policy:
        if name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
            raise InputError(f"--policy {name}: expected the name of a policy; TRACE goes before --policy")
    jobs, path = check_jobs(options.jobs), _trace(options.trace)
    check_distinct(trace=path, log=options.log, timeline=options.timeline, json=named_file(options.json))
    header = TraceFile(path).header
    runs = len({*select(options.policy), recipe(BASELINE)})
    if options.jobs is None and runs * header.tokens < WORTH_SPREADING:
        jobs = 1
    if options.cutoff == "best":
        runs += runs * (header.model.layers + 1)  # An upper limit: not every policy has a cutoff to try.
    with json_output(options.json) as write_json:
        with progress_bar(runs * header.tokens, "tokens") as progress:
            result = replay(
                path,
                options.policy,
                **fields_given(options, RunOptions),
                cutoff=options.cutoff,
                lossy=options.lossy,
                jobs=jobs,
                log=options.log,
                timeline=options.timeline,
                progress=progress,
            )
        write_json(result.to_json())
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    show_replay(result, _console_beside(options.json))
    _note_bundled(options.trace)


def run_cutoff(options: argparse.Namespace) -> None:
    """Explain the analytical cutoff and find the empirical one."""
    path = _trace(options.trace)
    check_distinct(trace=path, json=named_file(options.json))
    trace = TraceFile(path)
    with json_output(options.json) as write_json:
        with progress_bar((trace.header.model.layers + 1) * trace.header.tokens, "tokens") as progress:
            study = study_cutoff(trace, options.policy, _run_options(options), progress)
        write_json(study.to_json())
    show_cutoff(study, _console_beside(options.json))
    _note_bundled(options.trace)


def run_forecasts(options: argparse.Namespace) -> None:
    """Rate a trace's forecasts and say how early they come."""
    path = _trace(options.trace)
    check_distinct(trace=path, log=options.log, json=named_file(options.json))
    trace = TraceFile(path)
    given = {name: value for name, value in fields_given(options, RunOptions).items() if value is not None}
    with json_output(options.json) as write_json:
        with progress_bar(len(trace.header.forecasts) * trace.header.tokens, "tokens") as progress:
            study = forecasts(trace, log=options.log, progress=progress, **given)
        write_json(study.to_json())
    show_forecasts(study, _console_beside(options.json))
    _note_bundled(options.trace)


def run_swept(options: argparse.Namespace) -> None:
    """Run a grid of replays, or say how large it is."""
    check_jobs(options.jobs)
    check_format(options.out)
    values = fields_given(options, RunOptions)
    cells = grid(options.trace, options.policy, cutoff=options.cutoff, lossy=options.lossy, **values)
    if options.dry_run:
        done = count_done(cells, options.out)
        print(f"{len(cells):,} cells; {done:,} of them are done" if done else f"{len(cells):,} cells")
    else:
        with progress_bar(len(cells), "cells") as progress:
            swept = run_sweep(cells, options.out, options.jobs, progress)
        show_sweep(swept, options.out, console(sys.stdout))
    for one in select(options.policy):
        if (why := obstacle_of_output(one, options.lossy)) is not None:
            print(f"left out {one.name}: {why}")


def run_plot(options: argparse.Namespace) -> None:
    """Draw what a sweep found."""
    out = plot(options.results, options.x, options.y, policies=options.policy, out=options.out)
    print(out)


def run_fidelity(options: argparse.Namespace) -> None:
    """Simulate what the engine has timed, and compare."""
    inputs = {f"run {number}": path for number, path in enumerate(dict.fromkeys(options.run), 1)}
    check_distinct(**inputs, trace=options.trace, timeline=options.timeline, json=named_file(options.json))
    with json_output(options.json) as write_json, ExitStack() as stack:
        spans = None
        if options.timeline is not None:
            spans = TimelineWriter(stack.enter_context(atomic_write(options.timeline)))
        with progress_bar(sum(len(read_run(Path(path)).policies) for path in options.run), "policies") as progress:
            found = fidelity(
                options.run,
                options.trace,
                timeline=spans,
                logs=None if options.logs is None else Path(options.logs),
                progress=progress,
            )
        if spans is not None:
            spans.close()
        write_json(found.to_json())
    show_fidelity(found, _console_beside(options.json))


def run_cost(options: argparse.Namespace) -> None:
    """Show what a layer of a full window takes, item by item."""
    trace = TraceFile(_trace(options.trace))
    setting = resolve_setting(trace.header, summarise(trace).longest_request, _run_options(options))
    show_cost(setting, console(sys.stdout))
    _note_bundled(options.trace)


def run_check(options: argparse.Namespace) -> None:
    """Read a trace to its end and print what it holds."""
    trace = TraceFile(_trace(options.trace))
    show_summary(trace.header, summarise(trace), console(sys.stdout))
    _note_bundled(options.trace)


def run_import(options: argparse.Namespace) -> None:
    """Make a trace from a recording."""
    check_distinct(source=options.source, out=options.out)
    model = geometry(options.model)
    draft = draft_model(model.draft) if model.draft else None
    rates = Rates(options.agreement, options.draft_accuracy, options.next_gate_accuracy, options.confidence_auc)
    header, lines = import_trace(
        options.source,
        options.format,
        ModelShape(
            name=model.name,
            layers=model.layers,
            experts=model.experts,
            top_k=model.top_k,
            expert_params=model.expert_params,
            dense_params=model.dense_params,
            kv_bytes_per_token=model.kv_bytes_per_token,
        ),
        DraftShape(draft.name, draft.params, draft.active_params, draft.kv_bytes_per_token) if draft else None,
        rates,
        options.seed,
    )
    write_trace(options.out, header, lines)
    print(f"{options.out}: {header.tokens:,} tokens of {model.name}; {header.source.how}")


def _trace(given: str | None) -> str | Path:
    """The trace that the command line names, else the one that comes with the package."""
    return bundled_trace() if given is None else given


def _note_bundled(given: str | None) -> None:
    """Say which trace was taken where none was named; behind the results, for an error is one line."""
    if given is None:
        print(f"note: no TRACE given, so this is the bundled {bundled_trace().name}", file=sys.stderr)


def _run_options(options: argparse.Namespace) -> RunOptions:
    return RunOptions(**fields_given(options, RunOptions))


def _console_beside(json: str | None) -> Console:
    """Where tables go: not to standard output where that takes the JSON."""
    return console(sys.stderr if json == "-" else sys.stdout)


COMMANDS: Final[Commands] = MappingProxyType(
    {
        "policies": run_policies,
        "replay": run_replay,
        "cutoff": run_cutoff,
        "forecasts": run_forecasts,
        "sweep": run_swept,
        "plot": run_plot,
        "fidelity": run_fidelity,
        "cost": run_cost,
        "check": run_check,
        "import": run_import,
    }
)
