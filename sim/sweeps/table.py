"""Tables of results: CSV, and Parquet where pyarrow is there."""

from __future__ import annotations

import csv
import importlib
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spmoe.errors import InputError
from spmoe.files import atomic_write, reason

Value = str | int | float | bool | None
Row = dict[str, Value]
"""A row by column; what a row does not have is None."""

FORMATS = (".csv", ".parquet")
TEXT = frozenset(
    {
        "trace",
        "source",
        "model",
        "draft",
        "hardware",
        "hardware_kind",
        "room",
        "policy",
        "cutoff_asked",
        "skipped",
        "trace_digest",
        "hardware_digest",
        "schema",
        "code",
    }
)
"""Columns that hold text even where it looks like a number, or where no row has any."""

REAL = frozenset({"bits"})
"""Numbers that are whole in some rows only."""

_WHOLE = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?")


def flat(document: Mapping[str, Any], prefix: str = "") -> Row:
    """An object as columns; those of an object inside it are called `outer_inner`."""
    row: Row = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            row |= flat(value, f"{prefix}{name}_")
        else:
            row[f"{prefix}{name}"] = value
    return row


def check_format(path: str | os.PathLike[str]) -> None:
    """Raises InputError for a name that says no format, and for Parquet where pyarrow is missing."""
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise InputError(f"{path}: expected a name that ends in {' or '.join(FORMATS)}")
    if suffix == ".parquet":
        _pyarrow(path)


def read_table(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a file.  Raises InputError, one line, where it cannot be read or is no table."""
    check_format(path)
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None
    return _read_parquet(path, content) if Path(path).suffix == ".parquet" else _read_csv(path, content)


def write_table(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """Write rows, whole or not at all; the same rows give the same bytes.  Raises InputError as `atomic_write` does."""
    names = columns(rows)
    if Path(path).suffix == ".parquet":
        arrow, parquet = _pyarrow(path)
        arrays = {name: _array(arrow, name, [row.get(name) for row in rows]) for name in names}
        with atomic_write(path, binary=True) as stream:
            parquet.write_table(arrow.table(arrays), stream)
        return
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_text(row.get(name)) for name in names] for row in rows)


def columns(rows: Iterable[Row]) -> list[str]:
    """The columns of all rows, in the order of the row that has most of them."""
    return list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))


def _read_csv(path: str | os.PathLike[str], content: bytes) -> list[Row]:
    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8"), newline=""), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not a CSV file: {error}") from None
    if not lines:
        raise InputError(f"{path}: the file is empty; expected the names of columns")
    names = lines[0]
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) != len(names):
            raise InputError(f"{path}: row {number}: expected {len(names)} cells, got {len(cells)}")
    return [{name: _value(name, cell) for name, cell in zip(names, cells, strict=True)} for cells in lines[1:]]


def _read_parquet(path: str | os.PathLike[str], content: bytes) -> list[Row]:
    arrow, parquet = _pyarrow(path)
    try:
        rows: list[Row] = parquet.read_table(arrow.BufferReader(content)).to_pylist()
    except (arrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: is not a Parquet file: {str(error).splitlines()[0]}") from None
    return rows


def _pyarrow(path: str | os.PathLike[str]) -> tuple[Any, Any]:
    try:
        # By name: pyarrow comes without types, and CSV does without it.
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise InputError(
            f"{path}: Parquet needs pyarrow: pip install 'spmoe[parquet]', or choose a name that ends in .csv"
        ) from None


def _array(arrow: Any, name: str, values: list[Value]) -> Any:
    """A column, of one type whichever rows there are."""
    known = [value for value in values if value is not None]
    if name in TEXT or any(isinstance(value, str) for value in known):
        return arrow.array([None if value is None else str(value) for value in values], arrow.string())
    if known and all(isinstance(value, bool) for value in known):
        return arrow.array(values, arrow.bool_())
    if known and name not in REAL and all(isinstance(value, int) for value in known):
        return arrow.array(values, arrow.int64())
    return arrow.array([None if value is None else float(value) for value in values], arrow.float64())


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)  # of a float the shortest text that reads back as the same number


def _value(name: str, text: str) -> Value:
    if not text:
        return None
    if name in TEXT:
        return text
    if text in ("true", "false"):
        return text == "true"
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text
