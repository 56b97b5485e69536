"""`python -m engine run`: from options to text, summary and files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TextIO

from engine.checkpoints.bundled import ABOUT, EXAMPLE
from engine.cli.document import document
from engine.cli.inputs import check_trace_output, encode_and_plan, find_models
from engine.cli.messages import encodable, note, telling_failures
from engine.cli.prompts import Prompt, number_prompts
from engine.cli.reference import Request, check_comparable, compare
from engine.cli.sampling import chosen_sampling, sampling_options
from engine.cli.summary import show, summary
from engine.cli.trace_output import trace_of
from engine.engine import Engine
from engine.generation import Piece
from engine.plan import Plan
from spmoe.cli import json_output, named_file, printable
from spmoe.drive.dispatcher import Observer
from spmoe.errors import InputError
from spmoe.files import atomic_write, check_distinct
from spmoe.results.timeline import TimelineWriter
from spmoe.scheduler.log import LogWriter
from spmoe.trace.writer import write_trace

_SHOWN = 60
"""Characters of a prompt in a heading."""


def run(options: argparse.Namespace) -> None:
    """Generate text to standard output, then say what it took.

    With the results on standard output, text goes to standard error.  Raises InputError for whatever cannot be done;
    then no file is written.
    """
    check_distinct(
        earlier=options.earlier,
        stats=named_file(options.stats),
        log=options.log,
        timeline=options.timeline,
        record=options.record,
    )
    if options.record is not None:
        check_trace_output("--record", Path(options.record), options.max_new_tokens)
    if options.model is not None and options.prompt is None:
        raise InputError("expected --prompt TEXT")
    models = find_models(options)
    with json_output(options.stats) as write_stats, ExitStack() as stack:
        prompts = number_prompts(options.prompt or [EXAMPLE])
        encoded, plan = encode_and_plan(models, prompts, options)
        if options.against_plain:
            check_comparable(plan, chosen_sampling(plan, options))
        observers, logs = _observers(plan, options, stack)
        with telling_failures(plan), Engine(plan, observers, record=options.record is not None) as engine:
            # What is noted stands before text, and not before an error.
            if options.model is None:
                note(f"no --model, so the bundled pair runs: {ABOUT}")
            for line in filter(None, (plan.fallback, *plan.notes)):
                note(line)
            requests = _generate(engine, prompts, encoded, options)
            engine.finish()
            for writer in logs:
                writer.close()
        ends = frozenset[int]() if options.ignore_eos else engine.ends
        comparison = compare(plan, requests, options.max_new_tokens, ends) if options.against_plain else None
        if engine.recorder is not None:
            trace = trace_of(engine)
            write_trace(options.record, trace.header, trace)
        sampling = chosen_sampling(plan, options)
        write_stats(document(engine, sampling, comparison).to_json())
        report = show(summary(plan, sampling, engine.metrics(), engine.transfers(), comparison))
    print(printable(report, keep="\n"), file=sys.stderr)


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


def _generate(
    engine: Engine, prompts: list[Prompt], encoded: list[list[int]], options: argparse.Namespace
) -> list[Request]:
    """Stream what follows each prompt, an empty line between two; returns them all in tokens."""
    out = sys.stderr if options.stats == "-" else sys.stdout
    requests = []
    for number, (prompt, tokens) in enumerate(zip(prompts, encoded, strict=True)):
        if number:
            print(file=out, flush=True)
        if len(prompts) > 1:
            note(f"{prompt.name} of {len(prompts)}: {_shortened(prompt.text)}")
        pieces = engine.stream(
            tokens,
            options.max_new_tokens,
            stop=options.stop or (),
            ignore_eos=options.ignore_eos,
            **sampling_options(options),
        )
        with closing(pieces):  # type: ignore[type-var]
            if options.prompt is None:  # A continuation of what nobody wrote would puzzle.
                print(prompt.text, end="", file=out)
            requests.append(Request(tokens, _print(pieces, out)))
    return requests


def _print(pieces: Iterable[Piece], out: TextIO) -> list[int]:
    """Print text as it comes, and return its tokens; a line that has begun ends even where the run does not go on."""
    begun = False
    tokens: list[int] = []
    try:
        for piece in pieces:
            tokens += piece.tokens
            begun = begun or bool(piece.text)
            print(encodable(printable(piece.text, keep="\n\t"), out), end="", flush=True, file=out)
    except BaseException:
        if begun:
            print(file=out)
        raise
    print(file=out)
    return tokens


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
