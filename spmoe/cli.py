"""What the command lines of simulator and engine share: how they parse, fail, and write documents."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NoReturn

from spmoe.errors import InputError
from spmoe.files import atomic_write

Commands = Mapping[str, Callable[[argparse.Namespace], None]]
"""What to do for each name of a subcommand, which the parser calls `command`."""


class OneLineParser(argparse.ArgumentParser):
    """Wrong usage is an `InputError`, told in one line as all others are."""

    def error(self, message: str) -> NoReturn:
        """Never prints the usage, which would bury what is wrong."""
        raise InputError(f"{message} (see {self.prog} --help)")


def file(text: str) -> str:
    """A path; ArgumentTypeError for "-", which would become a file of that name."""
    if text == "-":
        raise argparse.ArgumentTypeError("expected a file, got -")
    return text


def named_file(path: str | None) -> str | None:
    """The path, unless it stands for standard output ("-")."""
    return None if path == "-" else path


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


def run_command(parser: argparse.ArgumentParser, commands: Commands, argv: Sequence[str] | None) -> int:
    """Parse and run a command; returns the exit status: 0, 2 where the input is bad, 130 when interrupted."""
    try:
        options = parser.parse_args(argv)
        commands[options.command](options)
        sys.stdout.flush()
    except InputError as error:
        return fail(str(error))
    except BrokenPipeError:
        # Whoever read our output has enough; a flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, UnicodeEncodeError) as error:
        return fail(f"standard output cannot be written: {error}")
    except KeyboardInterrupt as stop:
        print(f"interrupted: {stop}" if stop.args else "interrupted", file=sys.stderr)
        return 130
    return 0


def fail(message: str) -> int:
    """Say what is wrong in one line on standard error; returns the exit status."""
    with suppress(OSError, ValueError):  # Standard error may be what is broken.
        print(
            f"error: {message}".encode(errors="backslashreplace").decode("ascii", "backslashreplace"), file=sys.stderr
        )
    return 2


def start(main: Callable[[], int]) -> NoReturn:
    """Run `main` as the program: signals that end it come as exceptions, so that files half written are removed."""
    for ending in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        signal.signal(ending, _stop)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # Closed by whoever started us.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    sys.exit(main())


def _stop(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)
