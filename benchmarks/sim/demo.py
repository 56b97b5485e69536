"""Replays what `make replay` replays, and keeps the results.

    python -m benchmarks.sim.demo

writes benchmarks/results/demo.json; `python -m benchmarks.pages demo` puts its table into the README.
"""

from __future__ import annotations

import re

import sim
from benchmarks.files import RESULTS, ROOT, write_json

RESULT = RESULTS / "demo.json"
TRACE = ROOT / "traces" / "mixtral.jsonl"
POLICIES = re.search(r"^DEMO = (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1].split()  # type: ignore[index]
"""Those of `make replay`."""


def main() -> None:
    write_json(RESULT, sim.replay(TRACE, POLICIES).to_json(), indent=2)


if __name__ == "__main__":
    main()
