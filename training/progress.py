"""Progress on the terminal, and the end of the time that was given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.loop import Watch
from training.states import Row


class OutOfTime(Exception):
    """The minutes that were given are over."""


def shown(minutes: float | None) -> Callable[[str, int], AbstractContextManager[Watch]]:
    """A bar for each stage, on standard error; OutOfTime when `minutes` from now are over."""
    end = None if minutes is None else time.monotonic() + 60 * minutes

    @contextmanager
    def stage(name: str, steps: int) -> Iterator[Watch]:
        columns = (
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, *times, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=steps, loss="")
            mean: float | None = None

            def watch(row: Row) -> None:
                nonlocal mean
                mean = row.loss if mean is None else 0.98 * mean + 0.02 * row.loss
                bar.update(task, completed=row.step + 1, loss=f"{mean:.3f} nats")
                if end is not None and time.monotonic() > end and row.step + 1 < steps:
                    raise OutOfTime

            yield watch

    return stage
