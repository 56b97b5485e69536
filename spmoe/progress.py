"""A progress bar on standard error, for commands that take long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

Progress = Callable[[str, int], None]
"""Called with what is under way and how much has been done since the last call."""


def no_progress(name: str, done: int) -> None:
    """Shows nothing."""


@contextmanager
def progress_bar(total: int, unit: str) -> Iterator[Progress]:
    """A bar of `total` units while the block runs, where standard error is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield no_progress
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("", total=total)

        def progress(name: str, done: int) -> None:
            bar.update(task, advance=done, description=name)

        yield progress
