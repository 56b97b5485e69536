"""`python -m engine`: run, verify-log."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path

from engine.commands import parser
from engine.driver import Observer
from engine.engine import Engine
from engine.options import Options
from engine.plan import Plan, make_plan
from engine.prompts import encode_prompts
from engine.report import document, show, summary, trace_of
from engine.tinypair import write_tiny_pair
from spmoe.cli import json_output, named_file, run_command, start
from spmoe.errors import InputError
from spmoe.files import atomic_write, check_distinct
from spmoe.log import LogWriter, verify_log
from spmoe.policy.clairvoyant import Future
from spmoe.results.timeline import TimelineWriter
from spmoe.scheduler import TransferFailed
from spmoe.trace.reader import TraceFile
from spmoe.trace.windows import requests
from spmoe.trace.writer import write_trace

EXAMPLE = "The quick brown fox"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 where the input is bad, 130 when interrupted."""
    return run_command(parser(), {"run": run, "verify-log": run_verify_log}, argv)


def run(options: argparse.Namespace) -> None:
    """Generate text to standard output, then say what it took."""
    check_distinct(
        earlier=options.earlier,
        stats=named_file(options.stats),
        log=options.log,
        timeline=options.timeline,
        record=options.record,
    )
    with _models(options) as (model, draft), json_output(options.stats) as write_stats:
        texts = options.prompt or [EXAMPLE]
        prompts = encode_prompts(model, texts, options.chat)
        known = {field.name for field in fields(Options)}
        given = {name: value for name, value in vars(options).items() if name in known}
        if given["context"] is None and options.max_new_tokens > 0:
            given["context"] = max(map(len, prompts)) + options.max_new_tokens
        plan = make_plan(model, draft, Options(**given))
        if plan.fallback:
            print(f"note: {plan.fallback}", file=sys.stderr)
        with ExitStack() as stack:
            observers, logs = _observers(plan, options, stack)
            with Engine(plan, observers, record=options.record is not None) as engine:
                try:
                    _generate(engine, prompts, options)
                except TransferFailed as error:
                    raise InputError(str(error)) from error
                for writer in logs:
                    writer.close()
                if engine.recorder is not None:
                    trace = trace_of(engine)
                    write_trace(options.record, trace.header, trace)
                write_stats(document(engine))
                report = show(summary(plan, engine.metrics(), engine.transfers()))
        print(report, file=sys.stderr)


def run_verify_log(options: argparse.Namespace) -> None:
    """Repeat a log's decisions and say whether they are the same."""
    future = None
    if options.earlier is not None:
        trace = TraceFile(options.earlier, ())
        future = lambda config: Future(lambda: requests(trace), config.gamma)  # noqa: E731
    verified = verify_log(options.log, future)
    print(f"{options.log}: the same commands for all {verified.events:,} events, under {verified.recipe}")


@contextmanager
def _models(options: argparse.Namespace) -> Iterator[tuple[Path, Path | None]]:
    """The folders of target and draft: those given, or a random pair that lasts as long as the run."""
    if options.model is not None:
        if options.prompt is None:
            raise InputError("expected --prompt TEXT")
        yield Path(options.model), None if options.draft is None else Path(options.draft)
        return
    if options.draft is not None:
        raise InputError("--draft: expected --model too")
    print("note: no --model, so a tiny pair with random weights runs; its text means nothing", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="spmoe-") as folder:
        yield write_tiny_pair(Path(folder))


def _observers(
    plan: Plan, options: argparse.Namespace, stack: ExitStack
) -> tuple[list[Observer], list[LogWriter | TimelineWriter]]:
    """Those that write what was asked for, and what has to be closed when all went well."""
    observers: list[Observer] = []
    writers: list[LogWriter | TimelineWriter] = []
    if options.log is not None:
        log = LogWriter(stack.enter_context(atomic_write(options.log)), plan.config)
        observers.append(log.observe)
        writers.append(log)
    if options.timeline is not None:
        spans = TimelineWriter(stack.enter_context(atomic_write(options.timeline)))
        observers.append(spans.run(plan.recipe.name, plan.config.experts).observe)
        writers.append(spans)
    return observers, writers


def _generate(engine: Engine, prompts: list[list[int]], options: argparse.Namespace) -> None:
    """Stream what follows each prompt; an empty line between two."""
    out = sys.stderr if options.stats == "-" else sys.stdout
    for number, prompt in enumerate(prompts):
        if number:
            print(file=out)
        for piece in engine.stream(
            prompt,
            options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
            ignore_eos=options.ignore_eos,
        ):
            print(piece.text, end="", flush=True, file=out)
        print(file=out)


if __name__ == "__main__":
    start(main)
