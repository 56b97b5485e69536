"""`python -m engine run`: from options to text, summary and files."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TextIO

from engine.driver import Observer
from engine.engine import Engine, Piece
from engine.options import Options
from engine.pair import require_folder
from engine.plan import Plan, make_plan
from engine.prompts import encode_prompts
from engine.report import document, show, summary, trace_of
from engine.tinypair import write_random_pair
from spmoe.cli import json_output, named_file, printable
from spmoe.errors import InputError
from spmoe.files import atomic_write, check_distinct, reason
from spmoe.log import LogWriter
from spmoe.policy.clairvoyant import Unforeseen
from spmoe.results.timeline import TimelineWriter
from spmoe.scheduler import TransferFailed
from spmoe.trace.compression import zstandard_for
from spmoe.trace.writer import write_trace

EXAMPLE = "The quick brown fox"
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
        _check_record(Path(options.record), options.max_new_tokens)
    with _models(options) as (model, draft), json_output(options.stats) as write_stats:
        texts = options.prompt or [EXAMPLE]
        prompts = encode_prompts(model, texts, options.chat)
        plan = make_plan(model, draft, _options(options, max(map(len, prompts)) + options.max_new_tokens))
        for prompt in prompts:
            plan.check_request(prompt, options.max_new_tokens)
        with ExitStack() as stack:
            observers, logs = _observers(plan, options, stack)
            with _telling_failures(plan), Engine(plan, observers, record=options.record is not None) as engine:
                # What is noted stands before text, and not before an error.
                if options.model is None:
                    _note("no --model, so a tiny pair with random weights runs; its text means nothing")
                if plan.fallback:
                    _note(plan.fallback)
                _generate(engine, texts, prompts, options)
                engine.finish()
                for writer in logs:
                    writer.close()
                if engine.recorder is not None:
                    trace = trace_of(engine)
                    write_trace(options.record, trace.header, trace)
                write_stats(document(engine))
                report = show(summary(plan, engine.metrics(), engine.transfers()))
        print(printable(report, keep="\n"), file=sys.stderr)


def _options(options: argparse.Namespace, longest: int) -> Options:
    """What the command line says of the run; room for the `longest` request, in tokens, if it says nothing of that."""
    given = {field.name: getattr(options, field.name) for field in fields(Options)}
    return Options(**{**given, "context": longest if options.context is None else options.context})


@contextmanager
def _models(options: argparse.Namespace) -> Iterator[tuple[Path, Path | None]]:
    """The folders of target and draft: those given, or a random pair that lasts as long as the run."""
    if options.model is not None:
        if options.prompt is None:
            raise InputError("expected --prompt TEXT")
        model = Path(options.model)
        require_folder(model)
        yield model, None if options.draft is None else Path(options.draft)
        return
    if options.draft is not None:
        raise InputError("--draft: expected --model too")
    try:
        folder = tempfile.TemporaryDirectory(prefix="spmoe-")
    except OSError as error:
        raise InputError(f"no place for the random pair: {reason(error)}") from None
    with folder as name:
        yield write_random_pair(Path(name))


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


def _generate(engine: Engine, texts: list[str], prompts: list[list[int]], options: argparse.Namespace) -> None:
    """Stream what follows each prompt; an empty line between two."""
    out = sys.stderr if options.stats == "-" else sys.stdout
    for number, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        if number:
            print(file=out, flush=True)
        if len(prompts) > 1:
            _note(f"prompt {number + 1} of {len(prompts)}: {_shortened(text)}")
        pieces = engine.stream(
            prompt,
            options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
            ignore_eos=options.ignore_eos,
        )
        with closing(pieces):  # type: ignore[type-var]
            _print(pieces, out)


def _print(pieces: Iterable[Piece], out: TextIO) -> None:
    """Print text as it comes; a line that has begun ends even where the run does not go on."""
    begun = False
    try:
        for piece in pieces:
            begun = begun or bool(piece.text)
            print(_encodable(printable(piece.text, keep="\n\t"), out), end="", flush=True, file=out)
    except BaseException:
        if begun:
            print(file=out)
        raise
    print(file=out)


def _encodable(text: str, out: TextIO) -> str:
    """`text` with escapes for what `out` has no characters for."""
    encoding = out.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _note(text: str) -> None:
    print(f"note: {_encodable(printable(text), sys.stderr)}", file=sys.stderr, flush=True)


def _check_record(path: Path, new_tokens: int) -> None:
    """InputError where no trace could be written at the end of the run."""
    if new_tokens < 2:
        raise InputError("--record: the first token belongs to the prompt; expected --max-new-tokens of at least 2")
    if path.suffix == ".zst":
        zstandard_for(path)
    try:
        with atomic_write(path):
            raise _Writable
    except _Writable:
        pass


class _Writable(Exception):
    """Leaves a file that could be opened, and takes it away again."""


@contextmanager
def _telling_failures(plan: Plan) -> Iterator[None]:
    """What a run may die of without a mistake in it, in one line."""
    try:
        yield
    except TransferFailed as error:
        raise InputError(str(error)) from error
    except Unforeseen as error:
        raise InputError(f"{plan.options.earlier}: {error}") from None
