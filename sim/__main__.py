"""`python -m sim`: policies, replay, cutoff, sweep, plot, cost, check, import."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from sim.cutoff import study_cutoff
from sim.grid import grid
from sim.options import parser
from sim.plot import plot
from sim.pool import check_jobs
from sim.replay import BASELINE, replay
from sim.report import (
    console,
    progress_bar,
    show_cost,
    show_cutoff,
    show_policies,
    show_replay,
    show_summary,
    show_sweep,
)
from sim.setting import resolve_setting
from sim.sweep import count_done, run_sweep
from sim.table import check_format
from spmoe.errors import InputError
from spmoe.files import atomic_write, check_distinct
from spmoe.machine.geometry import draft_model, geometry
from spmoe.policy.registry import recipe, select
from spmoe.trace.draws import Rates
from spmoe.trace.importers import import_trace
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import DraftShape, ModelShape
from spmoe.trace.summary import summarise
from spmoe.trace.writer import write_trace

WORTH_SPREADING = 10_000
"""Tokens to replay, over all policies, from which on other processes are sooner done than they are started."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 2 where the input is bad."""
    try:
        options = parser().parse_args(argv)
        COMMANDS[options.command](options)
        sys.stdout.flush()
    except InputError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # Whoever read our output has enough; a flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, UnicodeEncodeError) as error:
        return _fail(f"standard output cannot be written: {error}")
    except KeyboardInterrupt as stop:
        print(f"interrupted: {stop}" if stop.args else "interrupted", file=sys.stderr)
        return 130
    return 0


def _fail(message: str) -> int:
    with suppress(OSError, ValueError):  # Standard error may be what is broken.
        print(
            f"error: {message}".encode(errors="backslashreplace").decode("ascii", "backslashreplace"), file=sys.stderr
        )
    return 2


def run_policies(options: argparse.Namespace) -> None:
    """Say what policies there are, or all about some of them."""
    chosen = select(options.policy or "all")
    show_policies(chosen, bool(options.policy) or options.long, console(sys.stdout))


def run_replay(options: argparse.Namespace) -> None:
    """Replay a trace, print the table, write what was asked for."""
    jobs = check_jobs(options.jobs)
    check_distinct(trace=options.trace, log=options.log, timeline=options.timeline, json=_file(options.json))
    header = TraceFile(options.trace).header
    runs = len({*select(options.policy), recipe(BASELINE)})
    if options.jobs is None and runs * header.tokens < WORTH_SPREADING:
        jobs = 1
    if options.cutoff == "best":
        runs += runs * (header.model.layers + 1)  # An upper limit: not every policy has a cutoff to try.
    with json_output(options.json) as write_json:
        with progress_bar(runs * header.tokens, "tokens") as progress:
            result = replay(
                options.trace,
                options.policy,
                **_setting(options),
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
    # With the JSON on standard output, the table must not spoil it.
    show_replay(result, console(sys.stderr if options.json == "-" else sys.stdout))


def run_cutoff(options: argparse.Namespace) -> None:
    """Explain the analytical cutoff and find the empirical one."""
    check_distinct(trace=options.trace, json=_file(options.json))
    trace = TraceFile(options.trace)
    with json_output(options.json) as write_json:
        with progress_bar((trace.header.model.layers + 1) * trace.header.tokens, "tokens") as progress:
            study = study_cutoff(trace, options.policy, progress=progress, **_setting(options))
        write_json(study.to_json())
    show_cutoff(study, console(sys.stderr if options.json == "-" else sys.stdout))


def run_swept(options: argparse.Namespace) -> None:
    """Run a grid of replays, or say how large it is."""
    check_jobs(options.jobs)
    check_format(options.out)
    cells = grid(options.trace, options.policy, cutoff=options.cutoff, lossy=options.lossy, **_setting(options))
    if options.dry_run:
        done = count_done(cells, options.out)
        print(f"{len(cells):,} cells; {done:,} of them are done" if done else f"{len(cells):,} cells")
        return
    with progress_bar(len(cells), "cells") as progress:
        swept = run_sweep(cells, options.out, options.jobs, progress)
    show_sweep(swept, options.out, console(sys.stdout))
    for one in select(options.policy):
        if not (one.lossless or options.lossy):
            print(f"left out {one.name}: changes the model's output; --lossy allows it")


def run_plot(options: argparse.Namespace) -> None:
    """Draw what a sweep found."""
    out = plot(options.results, options.x, options.y, policies=options.policy, out=options.out)
    print(out)


def run_cost(options: argparse.Namespace) -> None:
    """Show what a layer of a full window takes, item by item."""
    trace = TraceFile(options.trace)
    setting = resolve_setting(trace.header, summarise(trace).longest_request, **_setting(options))
    show_cost(setting, console(sys.stdout))


def run_check(options: argparse.Namespace) -> None:
    """Read a trace to its end and print what it holds."""
    trace = TraceFile(options.trace)
    show_summary(trace.header, summarise(trace), console(sys.stdout))


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


@contextmanager
def json_output(path: str | None) -> Iterator[Callable[[Mapping[str, Any]], object]]:
    """A function that writes a document: to a file, whole or not at all, to standard output ("-"), or nowhere (None).

    The file is opened at once, so that one that cannot be written is refused before any work.
    """
    if path is None:
        yield lambda document: None
        return
    with nullcontext(sys.stdout) if path == "-" else atomic_write(path) as stream:
        yield lambda document: stream.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def _file(path: str | None) -> str | None:
    """The path, unless it stands for standard output."""
    return None if path == "-" else path


def _setting(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("hardware", "bits", "vram", "cache", "slots", "gamma")}


COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "policies": run_policies,
    "replay": run_replay,
    "cutoff": run_cutoff,
    "sweep": run_swept,
    "plot": run_plot,
    "cost": run_cost,
    "check": run_check,
    "import": run_import,
}


def _stop(number: int, frame: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    for ending in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        signal.signal(ending, _stop)  # As an exception, so that files half written are removed.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # Closed by whoever started us.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    sys.exit(main())
