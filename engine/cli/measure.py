"""`python -m engine measure`: times policies on a trace, for the simulator to be held against."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from engine.cli.timed_pair import LATENCY_NS, TOO_LARGE, describe_link, host_memory, named_pair
from engine.memory.out_of_memory import oom_as_input_error
from engine.profiling.calibration import Calibration
from engine.profiling.policy_timing import Measurement, choose
from spmoe.cli import json_output
from spmoe.errors import InputError
from spmoe.files import atomic_write, check_distinct, reason
from spmoe.progress import progress_bar
from spmoe.results.run import Run, TraceIdentity, log_path
from spmoe.run.options import RunOptions
from spmoe.trace.excerpt import excerpt
from spmoe.trace.reader import TraceFile

_WIDTH: Final = 132


def measure(options: argparse.Namespace) -> None:
    """Time policies on a trace, write the run file and show it."""
    source = Path(options.trace)
    check_distinct(trace=source, out=options.out, logs=options.logs)
    file = TraceFile(source)
    header = file.header
    draft = options.draft or (header.draft.name if header.draft and not options.model else None)
    pair, device = named_pair(options, options.model or header.model.name, draft)
    trace = excerpt(file, options.tokens, pair.model, pair.draft_model)
    identity = TraceIdentity.of(source, trace.header.tokens)
    cache = 0.5 if options.cache is options.slots is None else options.cache
    asked = RunOptions(cache=cache, slots=options.slots, gamma=options.gamma, cpu_experts=options.cpu_experts)
    chosen = choose(pair, trace, options.policy, asked)
    logs = None if options.logs is None else _folder(options.logs)
    with json_output(options.out) as write, oom_as_input_error(device, TOO_LARGE):
        study = Calibration(pair.build(device, host_memory(options)), options.link_gbps, LATENCY_NS)
        measurement = Measurement(study, trace, chosen, asked)
        with progress_bar(options.repeats * len(measurement.policies), "runs") as progress:
            for _ in range(options.repeats):
                measurement.repeat(progress)
        run = measurement.result(identity, describe_link(options))
        if logs is not None:
            for policy in measurement.policies:
                with atomic_write(log_path(logs, policy)) as stream:
                    measurement.log(policy, stream)
        write(run.to_json())
    _show(run, Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH, highlight=False))


def _folder(path: str) -> Path:
    """A folder to write to, made where it is not there; InputError where it cannot be."""
    try:
        Path(path).mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {reason(error)}") from None
    return Path(path)


def _show(run: Run, console: Console) -> None:
    """The policies, the fastest first."""
    share = run.slots / (run.model.layers * run.model.experts)
    console.print(
        f"{run.trace.tokens:,} tokens of {run.trace.name}, routing forced on {run.model.name} with random weights, "
        f"{run.bits:g} bits; {run.machine}{_slowed(run)}",
        markup=False,
    )
    console.print(f"slots for {run.slots} experts ({share:.0%}), gamma {run.gamma}", markup=False)
    table = Table(box=None)
    table.add_column("policy", no_wrap=True)
    for heading in ("TPOT ms", "spread", "runs", "loads/token"):
        table.add_column(heading, justify="right")
    for each in sorted(run.policies, key=lambda each: each.tpot_ms):
        loads = each.loads / run.trace.tokens
        table.add_row(
            each.policy, f"{each.tpot_ms:,.2f}", f"{each.spread:.1%}", str(len(each.tpots_ms)), f"{loads:,.2f}"
        )
    console.print(table)
    for name, why in run.skipped.items():
        console.print(f"left out {name}: {why}", markup=False)


def _slowed(run: Run) -> str:
    return "" if run.link_gbps is None else f", copies slowed down to {run.link_gbps:g} GB/s"
