"""The process that works stages off: those of one group, in order, until one fails.

A GPU that has gone wrong stays wrong for the process that uses it, and memory is back when a process has ended: so
each group has its own, which the command may end at any time.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from benchmarks.on_gpu.files import write_stage
from benchmarks.on_gpu.stages import DEVICES, Stage, stages
from engine.profiling.policy_timing import describe_machine

_MODULES: Final = {"profile": "geometry", "measure": "geometry"}
"""Where the function of a kind is that has no module of its own."""


class Task(NamedTuple):
    """What a stage's function is told; `kept` is what earlier stages of its group have left for it."""

    stage: Stage
    device: torch.device
    out: Path
    until: float
    """A reading of `time.monotonic`, at which repetitions should be over."""
    kept: dict[str, Any]

    @property
    def left(self) -> float:
        """Seconds until then, and at least one."""
        return max(1.0, self.until - time.monotonic())

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.stage.settings


def work_off(todo: Sequence[Stage], device: torch.device, out: Path, seconds: float) -> bool:
    """Works off what fits in `seconds`; false where a stage failed, behind which nothing was done."""
    end = time.monotonic() + seconds
    machine, kept = describe_machine(device), dict[str, Any]()
    for number, stage in enumerate(todo):
        began = time.monotonic()
        if number and began + stage.seconds > end:
            return True  # It took longer than was thought.
        try:
            # What is built for a group counts as its first stage's.
            until = min(end, began + stage.seconds + (0 if number else stage.setup))
            result = _function(stage.kind)(Task(stage, device, out, until, kept))
        except Exception as error:
            traceback.print_exc()
            write_stage(out, stage, device.type, machine, time.monotonic() - began, error=told(error))
            return False
        write_stage(out, stage, device.type, machine, time.monotonic() - began, result=result)
    return True


def _function(kind: str) -> Callable[[Task], Any]:
    module = import_module(f"benchmarks.on_gpu.{_MODULES.get(kind, kind)}")
    found: Callable[[Task], Any] = getattr(module, kind)
    return found


def told(error: Exception) -> str:
    """In one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--device", choices=DEVICES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    known = {stage.name: stage for stage in stages(options.device)}
    device = torch.device(options.device)
    todo = [known[name] for name in options.stages]
    sys.exit(not work_off(todo, device, options.out, options.seconds))


if __name__ == "__main__":
    main()
