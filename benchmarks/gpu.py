"""All that needs a GPU, in one run of less than nine minutes.

    python -m benchmarks.gpu [--device cuda|cpu] [--out DIR] [--minutes M] [--only STAGE ...]

Needs torch, transformers, numpy and safetensors; with pytest, accelerate, triton, simpy, rich and matplotlib it does
more.  Stages, most important first, each leave a file in DIR; `summary.json` tells of all, and figures are drawn.  What
is there already, made by the same code with the same settings, is not done again: a run that was cut off goes on.  A
stage that no longer fits the time is left out, one that fails is told in a line; neither stops the others.  With
`--device cpu` all of it runs small, with the bundled pair, to show that it works.  docs/gpu.md says how to read it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.on_gpu.files import read_stage
from benchmarks.on_gpu.plots import draw
from benchmarks.on_gpu.stages import DEVICES, ROOT, Stage, stages
from benchmarks.on_gpu.summary import summarise

RESULTS: Final = ROOT / "benchmarks" / "results"
MINUTES: Final = 8.5

Work = Callable[[Sequence[Stage], float], str]
"""Works stages of a group off within so many seconds; says how its process ended, nothing where all is well."""


class Outcome(NamedTuple):
    """What became of a stage: "done", "kept" (from an earlier run), "failed" or "left out", and why."""

    stage: Stage
    state: str
    why: str = ""


def run(todo: Iterable[Stage], out: Path, until: float, work: Work, told: Callable[[Outcome], object]) -> list[Outcome]:
    """Works off what fits before `until`, a reading of `time.monotonic`; `told` hears what becomes of each stage."""
    found: list[Outcome] = []

    def note(stage: Stage, state: str, why: str = "") -> None:
        found.append(Outcome(stage, state, why))
        told(found[-1])

    for _, group in groupby(todo, key=lambda stage: stage.group):
        rest = []
        for stage in group:
            kept = None if stage.cheap else read_stage(out, stage)
            if kept is not None and kept["state"] == "done":
                note(stage, "kept")
            else:
                rest.append(stage)
        while rest:
            left = until - time.monotonic()
            fitting = fits(rest, left)
            if not fitting:
                for stage in rest:
                    note(
                        stage,
                        "left out",
                        f"takes some {stage.setup + stage.seconds:.0f} s, {max(0, left):.0f} were left",
                    )
                break
            for stage in fitting:
                (out / f"{stage.name}.json").unlink(missing_ok=True)  # What is there afterwards is of this run.
            ended = work(fitting, left)
            rest = rest[_settle(fitting, out, ended, note) :]
    return found


def fits(group: Sequence[Stage], seconds: float) -> list[Stage]:
    """The first stages of a group that a process has time for."""
    found: list[Stage] = []
    needed = group[0].setup
    for stage in group:
        needed += stage.seconds
        if needed > seconds:
            break
        found.append(stage)
    return found


def _settle(tried: Sequence[Stage], out: Path, ended: str, note: Callable[..., None]) -> int:
    """Says what became of stages that were tried, up to one that failed; returns how many those are."""
    for number, stage in enumerate(tried):
        left = read_stage(out, stage)
        if left is not None and left["state"] == "done":
            note(stage, "done")
        elif left is not None:
            note(stage, "failed", left["error"])
            return number + 1
        else:
            # Nobody failed: those before took so long that there was no time.
            note(stage, *(("failed", ended) if ended else ("left out", "those before took longer than was thought")))
            if ended:
                return number + 1
    return len(tried)


class Processes:
    """Works groups off in processes of their own, which end when their time is over."""

    def __init__(self, device: str, out: Path) -> None:
        self._command = [sys.executable, "-m", "benchmarks.on_gpu.worker", "--device", device, "--out", str(out)]

    def __call__(self, todo: Sequence[Stage], seconds: float) -> str:
        command = [*self._command, "--seconds", f"{seconds:.1f}", *(stage.name for stage in todo)]
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"cut off after {seconds:.0f} s"
        finally:
            _end(process)
        return "" if code == 0 else f"its process ended with status {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """What the process has started ends, too."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def chosen(device: str, only: Sequence[str] | None) -> list[Stage]:
    """The stages named, or all."""
    return [stage for stage in stages(device) if only is None or stage.name in only]


def main() -> None:
    names = sorted({stage.name for device in DEVICES for stage in stages(device)})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results/gpu, or gpu-cpu-smoke")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"of time there is, default {MINUTES}")
    parser.add_argument("--only", nargs="+", metavar="STAGE", choices=names, help=f"of {', '.join(names)}")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    if options.device == "cuda":
        import torch  # Every stage does, and the first takes longest to.

        if not torch.cuda.is_available():
            parser.exit(2, "gpu: torch finds no CUDA device here; --device cpu runs it small\n")
    out = (options.out or RESULTS / ("gpu" if options.device == "cuda" else "gpu-cpu-smoke")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Ends what was started, too.
    outcomes = run(chosen(options.device, options.only), out, until, Processes(options.device, out), _say)
    print(summarise(outcomes, stages(options.device), options.device, out), flush=True)
    for line in draw(out):
        print(line)


def _say(outcome: Outcome) -> None:
    print(f"{outcome.stage.name}: {outcome.state}{f': {outcome.why}' if outcome.why else ''}", flush=True)


if __name__ == "__main__":
    main()
