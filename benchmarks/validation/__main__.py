"""Runs the checks and writes their results and docs/validation.md.

    python -m benchmarks.validation --data FOLDER

FOLDER holds the real routing and the published speeds, which are not part of the project (docs/validation.md says where
they come from).  The settings are those of config.json beside this file, fixed before the first run.  `--only` runs
some checks and keeps the other results; `--only page` writes the page anew.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.validation import cascade, hybrimoe, layer_times, offloading, shapes
from benchmarks.validation.inputs import CONFIG, ROOT, digests
from benchmarks.validation.page import page
from spmoe.errors import InputError
from spmoe.files import atomic_write

RESULTS = ROOT / "benchmarks" / "results" / "validation.json"
PAGE = ROOT / "docs" / "validation.md"

CHECKS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "offloading": lambda data, jobs: offloading.run(data),
    "hybrimoe": lambda data, jobs: hybrimoe.run(data),
    "spmoe": lambda data, jobs: shapes.run(jobs),
    "cascade": cascade.run,
    "machine": lambda data, jobs: layer_times.run(data),
}


def main() -> int:
    """Run what was asked for; returns the exit status: 2 where the data are missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.validation", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=[*CHECKS, "page"], default=list(CHECKS), metavar="CHECK")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    options = parser.parse_args()
    if options.data is None and options.only != ["page"]:
        parser.error("the checks need --data FOLDER")
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    try:
        for name, check in CHECKS.items():
            if name in options.only:
                print(f"{name}: {CONFIG[name]['title']}", file=sys.stderr)
                found["inputs"] = digests(options.data)
                # As they will be read back: the page must not tell results from their file.
                found[name] = json.loads(json.dumps(check(options.data, options.jobs), allow_nan=False))
                with atomic_write(RESULTS) as stream:
                    stream.write(json.dumps(found, indent=1, allow_nan=False) + "\n")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error}: pip install 'spmoe[validation]'", file=sys.stderr)
        return 2
    missing = [name for name in CHECKS if name not in found]
    if missing:
        print(f"no page yet: run {', '.join(missing)} too", file=sys.stderr)
        return 0
    with atomic_write(PAGE) as stream:
        stream.write(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
