"""The cells of a sweep: one policy in one place, and the columns by which its row is known."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import spmoe
from sim.sweeps.table import Row, Value
from spmoe.errors import InputError
from spmoe.files import reason
from spmoe.machine.hardware import Hardware
from spmoe.run.options import RunOptions

SCHEMA = "spmoe-sweep/1"
IDENTITY = (
    "trace",
    "trace_digest",
    "hardware",
    "hardware_digest",
    "bits",
    "room",
    "gamma",
    "cpu_experts",
    "policy",
    "cutoff_asked",
    "schema",
    "code",
)
"""The columns that say which cell a row is: what was asked for, and the content of the files that it names.

Rows of other code are not taken over: it may decide otherwise.
"""

Cutoff = int | Literal["best", "all"]


@dataclass(frozen=True, slots=True)
class Place:
    """What the cells of all policies share: a trace, known by a digest of its bytes too, and the options of its runs.

    The machine and the number format of `options` are resolved already.
    """

    trace: Path
    digest: str
    options: RunOptions


@dataclass(frozen=True, slots=True)
class Cell:
    """One policy in one place.

    `cutoff` is that of `sim.replay`.  `columns` is the resolved configuration, the first part of the cell's row.
    `obstacle` says why there is nothing to run, where that is known beforehand.
    """

    place: Place
    policy: str
    cutoff: int | Literal["best"] | None
    columns: Row
    obstacle: str | None


def identity(row: Row) -> tuple[str, ...]:
    """Which cell a row is, the same for what was just resolved and for what was read back from a file."""
    return tuple(_plain(row.get(name)) for name in IDENTITY)


def digest(path: str | os.PathLike[str]) -> str:
    """A digest of a file's bytes, as rows carry it.  Raises InputError where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}"
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None


@cache
def code_digest() -> str:
    """A digest of the code that replays: of this package and the core's, data files included."""
    content = hashlib.sha256()
    for package in (Path(__file__).parents[1], Path(spmoe.__file__).parent):
        for path in sorted((*package.rglob("*.py"), *package.rglob("*.json"))):
            content.update(f"{path.relative_to(package.parent).as_posix()}\0".encode() + path.read_bytes())
    return f"sha256:{content.hexdigest()[:16]}"


def hardware_digest(hardware: Hardware) -> str:
    """Two profiles may have the same name."""
    content = json.dumps(asdict(hardware), sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _plain(value: Value) -> str:
    """16 and 16.0 are the same width, whichever of them a file holds."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)
