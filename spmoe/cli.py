"""What the command lines of simulator and engine share: how they parse, fail, and write documents."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, NoReturn

from spmoe import __version__
from spmoe.errors import InputError
from spmoe.files import atomic_write, reason

Command = Callable[[argparse.Namespace], None]

Commands = Mapping[str, Command]
"""What to do for each name of a subcommand, which the parser calls `command`."""

_TURNS: Final = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""The bidirectional classes of Unicode's marks that turn the direction of writing."""


class Stopped(SystemExit):
    """A signal ends the program; `code` is the exit status."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


class OneLineParser(argparse.ArgumentParser):
    """Wrong usage is an `InputError`, in one line as all others are.

    An option that takes several values may be given several times, and they add up; one that takes a single value may
    be given once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("action", None, _Store)
        self.register("action", "store", _Store)
        self.given: set[str] = set()
        """The options seen so far by the parse under way."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the base class does; begins with no option seen."""
        self.given.clear()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Never prints the usage, which would bury what is wrong."""
        raise InputError(f"{message} (see {self.prog} --help)")


class _Store(argparse._StoreAction):
    """Stores a value; of an option given again, adds its values to the earlier ones or refuses it."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        if option_string is not None:
            assert isinstance(parser, OneLineParser)
            if self.dest in parser.given:
                if self.nargs not in ("+", "*"):
                    raise argparse.ArgumentError(self, "given twice")
                values = [*getattr(namespace, self.dest), *values]
            parser.given.add(self.dest)
        setattr(namespace, self.dest, values)


def program_parser(module: str, description: str) -> OneLineParser:
    """The parser of the program `python -m MODULE`, which is installed as the console script `spmoe-MODULE`.

    Usage texts name the one of the two that was called.
    """
    script = f"spmoe-{module}"
    prog = script if Path(sys.argv[0]).stem == script else f"python -m {module}"
    parser = OneLineParser(prog=prog, description=description)
    parser.add_argument("--version", action="version", version=f"spmoe {__version__}")
    return parser


def file(text: str) -> str:
    """A path; ArgumentTypeError for "-", which would become a file of that name."""
    if text == "-":
        raise argparse.ArgumentTypeError("expected a file, got -")
    return text


def named_file(path: str | None) -> str | None:
    """The path, unless it stands for standard output ("-")."""
    return None if path == "-" else path


def fields_given(options: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """The options that are called like fields of `kind`, to make one of: `kind(**fields_given(options, kind))`."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in vars(options).items() if name in names}


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
    """Parse and run a command; returns the exit status: 0, 2 where the input is bad, 128 + n after signal n."""
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
        if isinstance(error, OSError) and error.filename is not None:
            return fail(f"{error.filename}: {reason(error)}")
        return fail(f"standard output cannot be written: {error}")
    except KeyboardInterrupt as stop:
        _tell(f"interrupted: {stop}" if stop.args else "interrupted")
        return 130
    except Stopped as stop:
        _tell(f"stopped by {stop.name}")
        return int(stop.code or 0)
    return 0


def fail(message: str) -> int:
    """Say what is wrong in one line on standard error; returns the exit status."""
    _tell("error: " + printable(message).encode("ascii", "backslashreplace").decode("ascii"))
    return 2


def printable(text: str, keep: str = "") -> str:
    """`text` with escapes in place of what could play tricks on a terminal: control characters except those to `keep`,
    marks that turn the direction of writing, and halves of surrogate pairs, which cannot be encoded."""
    if text.isprintable():
        return text
    return "".join(
        each.encode("unicode_escape").decode() if each not in keep and _plays_tricks(each) else each for each in text
    )


def _plays_tricks(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or unicodedata.bidirectional(character) in _TURNS


def _tell(message: str) -> None:
    with suppress(OSError, ValueError):  # Standard error may be what is broken.
        print(message, file=sys.stderr)


def start(main: Callable[[], int]) -> NoReturn:
    """Run `main` as the program: signals that end it come as exceptions, so that files half written are removed."""
    for ending in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        signal.signal(ending, _stop)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # Closed by whoever started us.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    sys.exit(main())


def _stop(number: int, frame: object) -> NoReturn:
    raise Stopped(number)
