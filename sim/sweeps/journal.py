"""The finished cells of a sweep, safe on disk one by one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType

from sim.sweeps.table import Row
from spmoe.errors import InputError
from spmoe.files import reason


class Journal:
    """JSON lines beside the table to be, one row each.

    A line is on the disk when `add` returns, so that a killed sweep loses none.  What the kill cut off in the middle of
    a line is no row, and the next one goes on a line of its own.
    """

    def __init__(self, table: str | os.PathLike[str]) -> None:
        """Opens FILE.partial for a table FILE and reads what is there; InputError where it cannot be written."""
        self.path = Path(f"{os.fspath(table)}.partial")
        self.rows = read_rows(self.path)
        try:
            self._stream = open(self.path, "ab+")  # noqa: SIM115
            if self._stream.tell():
                self._stream.seek(-1, os.SEEK_END)
                if self._stream.read(1) != b"\n":
                    self._write(b"\n")
        except OSError as error:
            raise InputError(f"{table}: cannot be written: {reason(error)}") from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.close()
        if self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()  # Nothing to go on from.

    def add(self, row: Row) -> None:
        """Keep a row.  Raises InputError where the disk takes no more."""
        try:
            self._write(json.dumps(row, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {reason(error)}") from None
        self.rows.append(row)

    def remove(self) -> None:
        """The table holds all of it now."""
        self.rows.clear()
        self.path.unlink(missing_ok=True)

    def _write(self, line: bytes) -> None:
        self._stream.write(line)
        self._stream.flush()
        os.fsync(self._stream.fileno())


def read_rows(path: Path) -> list[Row]:
    """The rows of a journal, none where there is no such file; lines that a kill cut off are passed over."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None
    rows: list[Row] = []
    for line in content.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
