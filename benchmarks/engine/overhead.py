"""What the engine's decisions and bookkeeping cost per layer, beside the tensors.

    python -m benchmarks.engine.overhead

Runs a random pair with everything resident, and with half of it, and takes the time of each layer's callback less that
of tensor operations (gathering rows, experts, adding up, reading the router's choice) and waits.  The CPU computes no
experts.  What is left is the driver, the scheduler, metrics and the copies' submissions.  Deciles and medians over all
verified layers, in microseconds, go to benchmarks/results/engine_overhead.json.  The machine is shared, and others slow
it down: so each figure is that of the fastest of several runs, and the time of a loop in plain Python stands beside it,
to compare with.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

import engine.decoding.target_model as target_module
from benchmarks.engine.random_pair import PairShape, write_random_pair
from engine.decoding.target_model import TargetModel
from engine.engine import Engine
from engine.execution.cpu_worker import HostWorker
from engine.memory.link import Link
from engine.moe.eager import ExpertRows
from spmoe.files import atomic_write

RESULTS = Path(__file__).resolve().parents[1] / "results" / "engine_overhead.json"
SHAPES = {
    8: PairShape(layers=8, hidden=64, experts=8, top_k=2),
    128: PairShape(layers=8, hidden=64, experts=128, top_k=8),
}
AIMS_US = {8: 50, 128: 150}
POLICIES = ("on-demand.lru", "spmoe.per-layer", "spmoe.foresight")
RUNS = 5
NEW_TOKENS = 128
GAMMA = 4


class Stopwatch:
    """Adds up the time of some calls, none of which is within another."""

    def __init__(self) -> None:
        self.ns = 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its time added here."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter_ns()
            try:
                return function(*args, **kwargs)
            finally:
                self.ns += time.perf_counter_ns() - start

        return call


class Layers:
    """Takes the time of every layer's callback less that of its tensor operations."""

    def __init__(self) -> None:
        self.us: list[float] = []
        self._tensors = Stopwatch()
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Layers:
        tensors = self._tensors
        for owner, name in (
            (ExpertRows, "__init__"),
            (ExpertRows, "compute"),
            (ExpertRows, "combined"),
            (target_module, "read"),
            (Link, "wait"),
            (HostWorker, "wait"),
        ):
            self._replace(owner, name, tensors.timed(getattr(owner, name)))
        reached = TargetModel._layer_reached

        def timed(*args: Any) -> Any:
            before, start = tensors.ns, time.perf_counter_ns()
            output = reached(*args)
            self.us.append((time.perf_counter_ns() - start - (tensors.ns - before)) / 1e3)
            return output

        self._replace(TargetModel, "_layer_reached", timed)
        return self

    def __exit__(self, *_: object) -> None:
        for undo in self._undo:
            undo()

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        old = getattr(owner, name)
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, old))


def measure(experts: int, policy: str, cache: float, folders: tuple[Path, Path]) -> dict[str, Any]:
    """One run, after one that warms up.  `reference_us` is the time of a loop, to know how fast the machine was."""
    options = {"policy": policy, "cache": cache, "gamma": GAMMA, "cpu_experts": False}
    with Layers() as layers, Engine.from_pretrained(*folders, **options) as engine:
        for _ in range(2):
            layers.us.clear()
            before = engine.metrics()
            for _piece in engine.stream(list(range(60, 76)), NEW_TOKENS, ignore_eos=True):
                pass
        decode = layers.us[SHAPES[experts].layers :]
        after = engine.metrics()
        loads = (after.loads - before.loads) / (after.steps - before.steps) / SHAPES[experts].layers
    return {
        "experts": experts,
        "policy": policy,
        "cache": cache,
        "median_us": round(median(decode), 1),
        "p10_us": round(quantiles(decode, n=10)[0], 1),
        "p90_us": round(quantiles(decode, n=10)[8], 1),
        "loads_per_layer": round(loads, 2),
        "aim_us": AIMS_US[experts],
        "reference_us": round(min(timeit.repeat("sum(range(10_000))", number=10, repeat=20)) * 1e5, 1),
    }


def main() -> None:
    torch.set_num_threads(1)
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for experts, shape in SHAPES.items():
            folders = write_random_pair(Path(folder) / str(experts), shape)
            for policy in POLICIES:
                for cache in (1.0, 0.5):
                    runs = [measure(experts, policy, cache, folders) for _ in range(RUNS)]
                    measured.append(min(runs, key=lambda run: run["median_us"]))
                    print(measured[-1])
    document = {
        "what": "microseconds per layer of decisions and bookkeeping; random weights",
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "gamma": GAMMA,
        "measured": measured,
    }
    with atomic_write(RESULTS) as stream:
        stream.write(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
