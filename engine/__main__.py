"""`python -m engine`: run, record, profile, measure, verify-log.

All but the last need PyTorch, and import it when they are called.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from engine.cli.parser import parser
from spmoe.cli import run_command, start
from spmoe.errors import InputError
from spmoe.policy.parts.future import Future
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.log import verify_log
from spmoe.trace.reader import TraceFile
from spmoe.trace.windows import requests

NEEDED = ("torch", "transformers", "safetensors", "tokenizers")
"""What comes with `pip install 'spmoe[engine]'`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 where the input is bad, 128 + n where signal n ended it."""
    commands = {
        "run": run,
        "record": run_record,
        "profile": run_profile,
        "measure": run_measure,
        "verify-log": run_verify_log,
    }
    return run_command(parser(), commands, argv)


def run(options: argparse.Namespace) -> None:
    """Generate text to standard output, then say what it took."""
    with _needing_torch("run"):
        import engine.cli.run
    engine.cli.run.run(options)


def run_record(options: argparse.Namespace) -> None:
    """Record a trace from many prompts."""
    with _needing_torch("record"):
        import engine.cli.record
    engine.cli.record.record(options)


def run_profile(options: argparse.Namespace) -> None:
    """Measure this machine."""
    with _needing_torch("profile"):
        import engine.cli.measure
    engine.cli.measure.profile(options)


def run_measure(options: argparse.Namespace) -> None:
    """Time policies on a trace."""
    with _needing_torch("measure"):
        import engine.cli.measure
    engine.cli.measure.measure(options)


@contextmanager
def _needing_torch(command: str) -> Iterator[None]:
    """InputError where what the imports in the block need is not installed."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in NEEDED:
            raise
        raise InputError(f"{command} needs PyTorch and transformers: pip install 'spmoe[engine]' ({error})") from None


def run_verify_log(options: argparse.Namespace) -> None:
    """Repeat a log's decisions and say whether they are the same."""
    if options.earlier is None:
        verified = verify_log(options.log)
    else:
        trace = TraceFile(options.earlier, ())

        def future(config: SchedulerConfig) -> Future:
            return Future(lambda: requests(trace), config.gamma)

        verified = verify_log(options.log, future)
    print(f"{options.log}: the same commands for all {verified.events:,} events, under {verified.recipe}")


def run_program() -> NoReturn:
    """The console script `spmoe-engine`, and `python -m engine`."""
    start(main)


if __name__ == "__main__":
    run_program()
