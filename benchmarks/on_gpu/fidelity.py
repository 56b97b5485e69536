"""What the simulator says of the runs, beside what they took."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.on_gpu.stages import TRACES
from benchmarks.on_gpu.worker import Task


def fidelity(task: Task) -> dict[str, Any]:
    """Of all run files that are there; without SimPy it can be had from them later, on any machine."""
    files = sorted(task.out.glob("run-*.json"))
    if not files:
        return {"left_out": "there are no run files"}
    try:
        from sim.studies.fidelity import Fidelity
        from sim.studies.fidelity import fidelity as compare
    except ModuleNotFoundError as error:
        return {"left_out": f"{error.name} is not installed; later: python -m sim fidelity {task.out}/run-*.json"}
    found = []
    for file in files:
        trace = json.loads(file.read_text(encoding="utf-8"))["trace"]["name"]
        found += compare([file], TRACES / trace).policies
    return Fidelity(tuple(found)).to_json()
