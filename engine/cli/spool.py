"""Lines of a trace that wait on disk until their number is known, which its header has to say."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO, Self

from spmoe.errors import InputError
from spmoe.files import reason
from spmoe.trace.lines import LineParser
from spmoe.trace.schema import FORECAST_NAMES, ModelShape, TraceLine
from spmoe.trace.writer import line_text


class Spool:
    """Keeps lines in a temporary file, which has no name where the system can do without and ends with the block."""

    def __init__(self, model: ModelShape) -> None:
        """For lines of that model.  InputError where there is no place for it."""
        names = frozenset(FORECAST_NAMES)
        self._parser = LineParser(model, names, names)
        with _naming_it():
            self._file: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n")  # noqa: SIM115

    def append(self, line: TraceLine, /) -> None:
        """InputError where the disk is full."""
        with _naming_it():
            self._file.write(line_text(line) + "\n")

    def __iter__(self) -> Iterator[TraceLine]:
        """All lines so far; none may be appended meanwhile."""
        with _naming_it():
            self._file.seek(0)
        for text in self._file:
            yield self._parser.parse(json.loads(text))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # What could not be written any more is not wanted, either.
            self._file.close()


@contextmanager
def _naming_it() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"temporary file for the trace: cannot be written: {reason(error)}") from None
