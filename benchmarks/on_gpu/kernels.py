"""The Triton kernels, by their own benchmark."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

from benchmarks.on_gpu.stages import ROOT
from benchmarks.on_gpu.worker import Task

_BENCHMARK = "benchmarks.engine.kernel_bandwidth"


def kernels(task: Task) -> dict[str, Any]:
    """What that benchmark writes, or why it was left out."""
    if importlib.util.find_spec(_BENCHMARK) is None:
        return {"left_out": f"{_BENCHMARK} is not there"}
    if task.device.type != "cuda":
        return {"left_out": "no CUDA device"}
    if importlib.util.find_spec("triton") is None:
        return {"left_out": "triton is not installed"}
    subprocess.run([sys.executable, "-m", _BENCHMARK, "--device", "cuda"], cwd=ROOT, check=True)
    results = importlib.import_module(_BENCHMARK).RESULTS
    found: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
    return found
