"""A progress bar on standard error, for commands that take long."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

Progress = Callable[[str, int], None]
"""Called with what is under way and how much has been done since the last call."""

_BAR: Final = 40
"""Columns of the bar itself."""

_REDRAWN_AFTER_S: Final = 0.1

_ERASE_LINE: Final = "\r\x1b[K"


def no_progress(name: str, done: int) -> None:
    """Shows nothing."""


@contextmanager
def progress_bar(total: int, unit: str) -> Iterator[Progress]:
    """A bar of `total` units while the block runs, where standard error is a terminal."""
    stream = sys.stderr
    if stream is None or not stream.isatty():
        yield no_progress
        return
    bar = _Bar(stream, total, unit)
    try:
        yield bar.advance
    finally:
        stream.write(_ERASE_LINE)
        stream.flush()


class _Bar:
    """One line of a terminal, redrawn a few times a second."""

    def __init__(self, stream: TextIO, total: int, unit: str) -> None:
        self._stream, self._total, self._unit = stream, total, unit
        self._done, self._drawn_at = 0, float("-inf")

    def advance(self, name: str, done: int) -> None:
        """A `Progress`."""
        self._done += done
        now = time.monotonic()
        if now - self._drawn_at < _REDRAWN_AFTER_S and self._done < self._total:
            return
        self._drawn_at = now
        filled = _BAR * min(self._done, self._total) // max(1, self._total)
        text = f"{'#' * filled}{'.' * (_BAR - filled)} {self._done:,}/{self._total:,} {self._unit}  {name}"
        self._stream.write(_ERASE_LINE + text[: shutil.get_terminal_size().columns - 1])
        self._stream.flush()
