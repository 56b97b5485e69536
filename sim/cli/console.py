"""Where tables are printed, and how cells are written."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console

WIDTH = 132
"""Columns where the output is no terminal: enough for every table, so that nothing is cut off in a file or pipe."""

NOTHING = "-"
"""The cell of a value that there is not."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Left to the command line, which knows what a reader that went away means."""
        raise BrokenPipeError


def console(stream: TextIO) -> Console:
    """A console that keeps its tables whole where it does not write to a terminal."""
    return _Console(file=stream, width=None if stream.isatty() else WIDTH, highlight=False, soft_wrap=False)


def number(value: float | None, form: str, unit: str = "") -> str:
    """A table's cell."""
    return NOTHING if value is None else f"{value:{form}}{unit}"
