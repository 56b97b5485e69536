"""Checkpoints that say what their files should be: a `SHA256SUMS` beside them, as `sha256sum` writes it.

It tells a damaged or incomplete copy before any of it is used.  Who can change the files can change the sums, too.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path, PurePosixPath
from typing import Final

from spmoe.errors import InputError
from spmoe.files import atomic_write, reason

SUMS: Final = "SHA256SUMS"
_LINE: Final = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_SHOWN: Final = 12
"""Digits of a sum in a message."""


def check_sums(folder: Path) -> None:
    """Compares the files of `folder` with its `SHA256SUMS`; where there is none, nothing is checked.

    Raises InputError for a listed file that is missing or has other bytes, for weights (.safetensors) that are not
    listed, and for a list that is not one or names files elsewhere.
    """
    path = folder / SUMS
    if not os.path.lexists(path):
        return
    listed = _read(path)
    for weights in sorted(folder.glob("*.safetensors")):
        if weights.name not in listed:
            raise InputError(f"{weights}: {SUMS} does not list it")
    for name, expected in listed.items():
        found = _sum(folder / name)
        if found != expected:
            raise InputError(
                f"{folder / name}: damaged or exchanged: expected SHA-256 {expected[:_SHOWN]}... ({SUMS}), got "
                f"{found[:_SHOWN]}..."
            )


def write_sums(folder: Path) -> None:
    """Writes the `SHA256SUMS` of all other files in `folder`."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    with atomic_write(folder / SUMS) as stream:
        stream.writelines(f"{_sum(folder / name)}  {name}\n" for name in names)


def _read(path: Path) -> dict[str, str]:
    """The sum of each file, by name."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8: {error}") from None
    listed: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        found = _LINE.fullmatch(line)
        if found is None:
            raise InputError(
                f"{path}:{number}: expected a SHA-256 sum and the name of a file, as sha256sum writes them"
            )
        name = PurePosixPath(found[2])
        if name.is_absolute() or ".." in name.parts:
            raise InputError(f"{path}:{number}: expected a file below this folder, got {found[2]!r}")
        if str(name) in listed:
            raise InputError(f"{path}:{number}: {found[2]} is listed twice")
        listed[str(name)] = found[1].lower()
    return listed


def _sum(path: Path) -> str:
    try:
        # Whoever reads a pipe may wait for ever.
        if not path.is_file():
            raise InputError(f"{path}: {'expected a file' if os.path.exists(path) else 'missing'}; {SUMS} lists it")
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None
