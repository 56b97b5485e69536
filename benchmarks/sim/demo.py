"""Replays what `make replay` replays, and keeps the results.

    python -m benchmarks.sim.demo

writes benchmarks/results/demo.json and, of the policies that are shown without experts on the CPU too,
demo_no_cpu.json; `python -m benchmarks.pages demo` puts their table into the README.
"""

from __future__ import annotations

import re
from typing import Any

import sim
from benchmarks.files import RESULTS, ROOT, write_json

RESULT = RESULTS / "demo.json"
RESULT_NO_CPU = RESULTS / "demo_no_cpu.json"
TRACE = ROOT / "traces" / "mixtral.jsonl"


def policies(variable: str) -> list[str]:
    """Those that `make replay` names in that variable of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^{variable} = (.*)$", makefile, re.M)
    return str(found).split()


def with_cpu() -> dict[str, Any]:
    """The document of the first replay."""
    return sim.replay(TRACE, policies("DEMO")).to_json()


def without_cpu() -> dict[str, Any]:
    """The document of the second."""
    return sim.replay(TRACE, policies("DEMO_NO_CPU"), cpu_experts=False).to_json()


def main() -> None:
    write_json(RESULT, with_cpu(), indent=2)
    write_json(RESULT_NO_CPU, without_cpu(), indent=2)


if __name__ == "__main__":
    main()
