"""Output files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, overload

from spmoe.errors import InputError


def reason(error: OSError) -> str:
    """What the operating system had against it, in its own words ("Permission denied")."""
    return error.strerror or str(error) or type(error).__name__


@overload
def atomic_write(path: str | os.PathLike[str]) -> contextlib.AbstractContextManager[IO[str]]: ...
@overload
def atomic_write(
    path: str | os.PathLike[str], *, binary: Literal[True]
) -> contextlib.AbstractContextManager[IO[bytes]]: ...
@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, binary: bool = False) -> Iterator[IO[Any]]:
    """A file to write to that takes the name `path` when the block ends well, and leaves no trace when it does not.

    The bytes go to a new file in the same folder, which then replaces `path` in one step, so that no reader ever sees
    half a file and a failed run keeps the previous one.  Text is UTF-8 with "\\n" line ends on every system.

    Raises InputError (one line, naming `path`) when the folder is missing or cannot be written, when `path` is a
    folder, or when the disk is full.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target}: cannot be written: is a directory; expected a file name")
    # A device or a pipe (/dev/stdout) must not be replaced by a plain file, nor can it hold half a file.
    beside = target
    if target.is_file() or not target.exists():
        target = Path(os.path.realpath(target))  # a link keeps pointing at what it pointed at
        beside = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        stream: IO[Any] = open(beside, "wb") if binary else open(beside, "w", encoding="utf-8", newline="\n")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from None
    try:
        with stream:
            yield stream
        if beside != target:
            os.replace(beside, target)
    except BaseException as error:
        if beside != target:
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, BrokenPipeError):
            raise InputError(f"{path}: cannot be written: {reason(error)}") from None
        raise


def check_distinct(**paths: str | os.PathLike[str] | None) -> None:
    """Raises InputError where two of the named paths are the same file: one would overwrite the other."""
    seen: dict[str, str] = {}
    for name, path in paths.items():
        if path is None:
            continue
        real = os.path.realpath(path)
        if real in seen and not (os.path.exists(real) and not os.path.isfile(real)):  # devices may be shared
            raise InputError(f"{path}: expected a file of its own for {name}, but it is that of {seen[real]} too")
        seen[real] = name
