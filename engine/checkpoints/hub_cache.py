"""Checkpoints by name: where `hf download` has put what a repository holds.  Nothing is fetched here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from engine.checkpoints.checkpoint import missing_files, repository_of
from spmoe.errors import InputError

_NAME: Final = re.compile(r"(?!\.{1,2}/)[\w.-]+/(?!\.{1,2}$)[\w.-]+")
_SHOWN: Final = 12
"""Digits of a snapshot's name in a message."""


def find_checkpoint(name: str | Path) -> Path:
    """The checkpoint's folder that `name` is: a folder, or a repository (`org/name`) that is in the hub's cache.

    What is no folder and no repository's name is returned as it is, for whoever reads it to refuse.  Raises InputError
    for a repository that is not there, has several snapshots and none marked as the current one, or is incomplete.
    """
    folder = find_folder(name)
    repository = repository_of(folder)
    if repository is not None and folder.is_dir() and (missing := missing_files(folder)):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{folder}: incomplete: {missing[0]}{more} missing; `hf download {repository}` fetches what is missing"
        )
    return folder


def find_folder(name: str | Path) -> Path:
    """The same, whether or not weights are there: a configuration may be all that is needed."""
    path = Path(name)
    if path.exists():
        return _snapshot(path) if (path / "snapshots").is_dir() and repository_of(path) is not None else path
    if not _NAME.fullmatch(str(name)):
        return path
    cached = cache_folder() / f"models--{str(name).replace('/', '--')}"
    if not cached.is_dir():
        raise InputError(
            f"{name}: no such folder, and no such model in {cached.parent}; `hf download {name}` fetches it"
        )
    return _snapshot(cached)


def cache_folder() -> Path:
    """Where `hf download` keeps repositories, by the variables that move it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("HF_HOME") or caches / "huggingface").expanduser() / "hub"


def _snapshot(cached: Path) -> Path:
    """The snapshot of the repository in `cached` that `main` is, else the only one."""
    repository = repository_of(cached)
    snapshots = sorted(each.name for each in (cached / "snapshots").glob("*") if each.is_dir())
    main = cached / "refs" / "main"
    current = main.read_text("utf-8", "replace").strip() if main.is_file() else ""
    if current in snapshots:
        return cached / "snapshots" / current
    if len(snapshots) == 1:
        return cached / "snapshots" / snapshots[0]
    if not snapshots:
        raise InputError(f"{cached}: no snapshot is there; `hf download {repository}` fetches one")
    found = ", ".join(each[:_SHOWN] for each in snapshots)
    raise InputError(
        f"{cached}: several snapshots and no refs/main that says which one counts; expected the folder of one: {found}"
    )
