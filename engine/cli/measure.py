"""`python -m engine profile` and `measure`: what a machine takes, for the simulator to know and to be held against."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from engine.cli.report import show
from engine.device import resolve_device, resolve_dtype
from engine.options import Options
from engine.plan import out_of_memory
from engine.profiling.calibration import Study
from engine.profiling.policy_timing import Measurement, Room, choose
from engine.profiling.profile import Profile
from engine.profiling.random_models import BlankPair
from spmoe.cli import json_output, printable
from spmoe.errors import InputError
from spmoe.files import atomic_write, check_distinct, reason
from spmoe.machine.geometry import geometry, geometry_names
from spmoe.machine.units import format_size
from spmoe.policy.parts.runtime import NATIVE
from spmoe.policy.registry import RECIPES
from spmoe.results.run import Run, TraceIdentity, hardware_of, log_path
from spmoe.trace.excerpt import excerpt
from spmoe.trace.reader import TraceFile

LATENCY_NS: Final = 12_000
"""Of a link that is slowed down: as that of profiles/rtx-4090.json."""
_WIDTH: Final = 132


def profile(options: argparse.Namespace) -> None:
    """Measure the machine, write its profile and say the most important of it."""
    check_distinct(out=options.out)
    pair, device = _pair(options, options.model, options.draft)
    name = Path(options.out).stem
    with json_output(options.out) as write, _telling_memory(device):
        steps = options.turns + 3
        with _progress(steps, "profile") as told:
            told("models")
            subject = pair.build(device, _host_memory(options))
            told("link and kernels")
            study = Study(subject, options.link_gbps, LATENCY_NS)
            for turn in range(options.turns):
                told(f"turn {turn + 1}")
                study.turn()
            told("decisions")
            study.run_decisions(_native() if pair.layer_map is not None else ())
        document = Profile(study).document(name, _link(options))
        hardware_of(document, options.out)  # What cannot be read again is not written.
        write(document)
    print(printable(show(_summary(document, options.out)), keep="\n"))


def measure(options: argparse.Namespace) -> None:
    """Time policies on a trace, write the run file and show it."""
    source = Path(options.trace)
    check_distinct(trace=source, out=options.out, logs=options.logs)
    file = TraceFile(source)
    header = file.header
    draft = options.draft or (header.draft.name if header.draft and not options.model else None)
    pair, device = _pair(options, options.model or header.model.name, draft)
    trace = excerpt(file, options.tokens, pair.model, pair.draft_model)
    identity = TraceIdentity.of(source, trace.header.tokens)
    cache = 0.5 if options.cache is options.slots is None else options.cache
    room = Room(cache, options.slots, options.gamma, options.cpu_experts)
    chosen = choose(pair, trace, options.policy, room)
    logs = None if options.logs is None else _folder(options.logs)
    with json_output(options.out) as write, _telling_memory(device):
        study = Study(pair.build(device, _host_memory(options)), options.link_gbps, LATENCY_NS)
        measurement = Measurement(study, trace, chosen, room)
        with _progress(options.repeats * len(measurement.policies), "measure") as told:
            for _ in range(options.repeats):
                measurement.repeat(told)
        run = measurement.result(identity, _link(options))
        if logs is not None:
            for policy in measurement.policies:
                with atomic_write(log_path(logs, policy)) as stream:
                    measurement.log(policy, stream)
        write(run.to_json())
    _show(run, Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH, highlight=False))


def _pair(options: argparse.Namespace, model: str, draft: str | None) -> tuple[BlankPair, torch.device]:
    """The models named, as their configurations say, and where they will be."""
    known = Options(device=options.device, dtype=options.dtype, link_gbps=options.link_gbps)
    device = resolve_device(known)
    known.resolve_hardware()  # Refuses speeds that no link has.
    if draft is None:
        draft = _usual_draft(model)
    return BlankPair.read(model, draft, resolve_dtype(known, device)), device


def _usual_draft(model: str) -> str:
    """The draft that goes with a model of this name; InputError where none is known."""
    if model.endswith("target"):  # A pair's.
        return model.removesuffix("target") + "draft"
    usual = geometry(model).draft if model in geometry_names() else None
    if usual is None:
        raise InputError(f"model {model}: no draft is known that goes with it; expected --draft NAME or FOLDER")
    return usual


def _folder(path: str) -> Path:
    """A folder to write to, made where it is not there; InputError where it cannot be."""
    try:
        Path(path).mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {reason(error)}") from None
    return Path(path)


def _host_memory(options: argparse.Namespace) -> int | None:
    return Options(host_memory=options.host_memory).resolve_host_memory()


def _link(options: argparse.Namespace) -> str:
    return "" if options.link_gbps is None else f"; copies slowed down to {options.link_gbps:g} GB/s"


def _native() -> tuple[str, ...]:
    """Policies that the engine runs as they are."""
    return tuple(name for name, one in RECIPES.items() if one.lossless and one.runtime == NATIVE)


def _summary(document: dict[str, Any], out: str) -> Iterator[tuple[str, str]]:
    """Label and text of each line."""
    link, timings, measured = document["link"], document["timings"], document["measured"]
    transfers = measured["link"]["transfers"]
    off = max(abs(each["off_the_line"]) for each in transfers)
    largest = transfers[-1]
    beside = largest["beside_compute"]["median_us"] / largest["median_us"]
    yield "profile", f"{out}: {document['source']}"
    yield (
        "link",
        f"{link['bandwidth_gb_per_s']:,.2f} GB/s behind {link['latency_us']:,.1f} us, a further copy "
        f"{link['copy_us']:,.1f} us; {len(transfers)} sizes up to {format_size(largest['bytes'])} are within {off:.1%}",
    )
    yield (
        "",
        f"beside compute transfers take {beside:.2f} times as long, compute beside transfers "
        f"{measured['link']['compute_beside_transfers']:.2f} times",
    )
    yield "layer", f"{_curve(timings['layer'])} for attention, router and bookkeeping"
    yield "expert", f"{_curve(timings['expert'])} in a slot"
    yield "", f"{_curve(timings['host_expert'])} on the CPU"
    yield (
        "draft",
        f"{_curve(timings['draft_token'], 'read')}, and {timings['forecast_us']:,.1f} us for each layer's forecast",
    )
    arrival = f"{timings['landing_us']:,.0f} us each, and {timings['cold_us']:,.0f} us behind a layer with waits"
    yield "arrival", arrival
    least, most = (pick(timings["decisions_us"].items(), key=lambda each: each[1]) for pick in (min, max))
    yield "policy", f"{least[1]:,.1f} us ({least[0]}) to {most[1]:,.1f} us ({most[0]}) per layer beyond the simplest"


def _curve(points: list[dict[str, float]], unit: str = "tokens") -> str:
    """The first and the last point."""
    ends = (points[0], points[-1]) if len(points) > 1 else points
    counts = [next(iter(each.values())) for each in ends]
    return " to ".join(f"{each['us']:,.0f} us ({count} {unit})" for each, count in zip(ends, counts, strict=True))


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


@contextmanager
def _telling_memory(device: torch.device) -> Iterator[None]:
    """Where memory runs out meanwhile, an InputError says so."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise InputError(
            f"out of memory on {device}: give fewer slots, or another --model, --draft or --host-memory"
        ) from error


@contextmanager
def _progress(total: int, name: str) -> Iterator[Callable[[str], None]]:
    """A bar on standard error while the block runs, where that is a terminal; it is told what is done next."""
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        done = -1

        def told(what: str) -> None:
            nonlocal done
            done += 1
            bar.update(task, completed=done, description=what)

        yield told
