"""Reading trace files: streaming and strict.

A line that breaks the format is an InputError naming file, line, field and what was expected; nothing is skipped.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from spmoe.errors import InputError
from spmoe.files import reason
from spmoe.trace.compression import open_zst
from spmoe.trace.header import parse_header
from spmoe.trace.lines import LineParser
from spmoe.trace.schema import FORECAST_NAMES, Header, PrefillLine, TraceLine


class TraceFile:
    """A trace on disk, plain, .gz or .zst.

    Iterating opens the file anew each time, yields its lines one by one (memory does not grow with their number) and
    closes it at the end, or when the iterator is dropped.  `forecasts` limits the named forecasts that lines carry;
    the others are skipped without being looked into.

    Raises InputError: at once when there is no readable header, during iteration at the first bad line, and at the end
    when the header promised other counts.
    """

    def __init__(self, path: str | os.PathLike[str], forecasts: Collection[str] | None = None) -> None:
        unknown = sorted(set(forecasts or ()) - set(FORECAST_NAMES))
        if unknown:
            raise InputError(f"forecasts: expected some of {', '.join(FORECAST_NAMES)}, got {', '.join(unknown)}")
        self.path = Path(path)
        self._wanted = forecasts
        with opened(self.path) as stream:
            self._first = stream.readline()
        self._header = self._parse_header()

    @property
    def header(self) -> Header:
        return self._header

    def __iter__(self) -> Iterator[TraceLine]:
        parser = LineParser.of(self._header, self._wanted)
        order = _Order(self._header)
        number = 1
        with opened(self.path) as stream:
            if stream.readline() != self._first:
                raise InputError(f"{self.path}:1: the header changed while the trace was in use")
            for number, raw in enumerate(stream, start=2):
                try:
                    line = parser.parse(decode_line(raw))
                    order.see(line)
                except InputError as error:
                    raise self._at(number, error) from None
                yield line
        try:
            order.end()
        except InputError as error:
            raise self._at(number, error) from None

    def _parse_header(self) -> Header:
        if not self._first:
            raise InputError(f"{self.path}:1: the file is empty; expected the header line of a trace")
        try:
            return parse_header(decode_line(self._first))
        except InputError as error:
            raise self._at(1, error) from None

    def _at(self, number: int, error: InputError) -> InputError:
        return InputError(f"{self.path}:{number}: {' '.join(str(error).splitlines())}")


class _Order:
    """Checks what only the sequence of lines shows: their order, and the counts of the header."""

    __slots__ = ("_empty", "_header", "_position", "_request", "_tokens")

    def __init__(self, header: Header) -> None:
        self._header = header
        self._request = -1
        self._position = -1  # -1: the request has no token line yet
        self._tokens = self._empty = 0

    def see(self, line: TraceLine) -> None:
        if line.request != self._request:
            if line.request < self._request:
                raise InputError(
                    f"field request: expected requests in increasing order, got {line.request} after {self._request}"
                )
            self._request, self._position = line.request, -1
            if isinstance(line, PrefillLine):
                return
        if isinstance(line, PrefillLine):
            raise InputError(f"field prefill: expected only on the first line of request {line.request}")
        if self._position >= 0 and line.position != self._position + 1:
            raise InputError(f"field position: expected {self._position + 1}, got {line.position}")
        self._position = line.position
        self._tokens += 1
        self._empty += line.routed.count(())
        if self._tokens > self._header.tokens:
            raise InputError(f"field tokens: the header says {self._header.tokens} token lines; there are more")

    def end(self) -> None:
        if self._tokens != self._header.tokens:
            raise InputError(
                f"field tokens: the header says {self._header.tokens} token lines; the file ends after {self._tokens}"
            )
        if self._empty != self._header.empty_cells:
            raise InputError(
                f"field empty_cells: the header says {self._header.empty_cells}; the lines have {self._empty}"
            )


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's decompressed bytes; whatever makes them unreadable becomes one line."""
    try:
        with _open(path) as stream:
            yield stream
    except InputError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: cannot be decompressed: {error}; is the file cut short?") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return open_zst(path)
    return open(path, "rb")


def decode_line(raw: bytes) -> Any:
    """The JSON value of one line, without NaN, infinities or repeated keys."""
    try:
        return _JSON.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text: byte {raw[error.start]:#04x} at column {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"malformed JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise InputError("malformed JSON: nested too deeply") from None
    except InputError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(f"malformed JSON: {str(error).partition(';')[0]}") from None


def _refuse_constant(name: str) -> None:
    raise InputError(f"expected finite numbers, got {name}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise InputError(f"field {next(n for n in names if names.count(n) > 1)}: given twice")
    return value


_JSON = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_refuse_constant)
