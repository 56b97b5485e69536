"""Where results lie, and how they are written."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from spmoe.files import atomic_write

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results"


def read_json(path: Path) -> Any:
    """The document in a result file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, document: Any, indent: int = 1) -> None:
    """Replace a result file at once; its folder is made where it is missing.  `ValueError` for NaN or infinity."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        stream.write(json.dumps(document, indent=indent, allow_nan=False) + "\n")


def machine(*packages: str) -> str:
    """This machine, Python's version and those of installed packages: the header of a result that holds times."""
    versions = (f"{package} {version(package)}" for package in packages)
    return ", ".join((platform.machine(), f"Python {platform.python_version()}", *versions, "shared"))
