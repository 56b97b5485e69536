"""What is learned from: the source of Python's standard library, as the running interpreter has it (PSF-2.0)."""

from __future__ import annotations

import hashlib
import platform
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from spmoe.errors import InputError
from spmoe.files import reason

LICENCE: Final = "PSF-2.0"
LEFT_OUT: Final = frozenset({"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "__pycache__"})
"""Folders: tests are as large as the rest, the other two are tables; site-packages is not Python's."""
HELD_OUT: Final = 20
"""One file in so many is never learned from."""


class Source(NamedTuple):
    """A file: its path below the library's folder, with slashes, and its text."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Files in the order of their paths.  `name` says whose; `fingerprint` is the SHA-256 of all paths and bytes."""

    name: str
    learned: tuple[Source, ...]
    held_out: tuple[Source, ...]
    fingerprint: str


def standard_library() -> Corpus:
    """The library of the running interpreter, without what is of this machine only."""
    root = Path(sysconfig.get_path("stdlib"))
    return read_corpus(root, f"standard library of Python {platform.python_version()}", sys.stdlib_module_names)


def read_corpus(root: Path, name: str, modules: frozenset[str]) -> Corpus:
    """The files below `root` that belong to these top-level modules and are not in a folder of `LEFT_OUT`.

    Raises InputError where there is nothing to learn from or to hold out, or a file cannot be read.
    """
    digest = hashlib.sha256()
    learned: list[Source] = []
    held_out: list[Source] = []
    for path in sorted(_paths(root, modules)):
        try:
            content = (root / path).read_bytes()
            text = content.decode()
        except UnicodeDecodeError:
            continue  # Two or so are in another encoding, to try just that.
        except OSError as error:
            raise InputError(f"{root / path}: cannot be read: {reason(error)}") from None
        digest.update(f"{path}\0{len(content)}\0".encode())
        digest.update(content)
        (held_out if is_held_out(path) else learned).append(Source(path, text))
    if not learned or not held_out:
        raise InputError(f"{root}: expected source files of Python's standard library, found too few")
    return Corpus(name, tuple(learned), tuple(held_out), digest.hexdigest())


def is_held_out(path: str) -> bool:
    """Chosen by the path's hash: other files that come or go change nothing."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % HELD_OUT == 0


def _paths(root: Path, modules: frozenset[str]) -> Iterator[str]:
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if parts[0].removesuffix(".py") in modules and LEFT_OUT.isdisjoint(parts) and path.is_file():
            yield "/".join(parts)
