"""How close the simulator comes to what the engine measures on this CPU, over caches and speeds of an emulated link.

    python -m benchmarks.engine.fidelity [--tokens N] [--repeats N] [--fresh]

The bundled pair with random weights follows traces/pico.jsonl under every lossless policy that runs natively, with
slots for 25, 50 and 75 % of the experts, over links for which moving all experts that a round needs would take half as
long as computing it, as long, and three times as long: `engine measure`, with one thread for torch, as the link needs a
core of its own.  Run files go to benchmarks/results/fidelity, and one that is there is not measured again unless
`--fresh`; `sim fidelity` reads them all, and its result goes to benchmarks/results/fidelity.json.  `python -m
benchmarks.pages fidelity` makes tables of it, `python -m benchmarks.pages.fidelity_plot` the figure.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.files import RESULTS, ROOT, read_json, write_json
from sim.runner import Runner
from sim.studies.fidelity import Compared, Fidelity, fidelity
from spmoe.machine.hardware import Hardware, load_hardware
from spmoe.policy.registry import recipe
from spmoe.results.run import read_run
from spmoe.run.options import RunOptions
from spmoe.run.setting import resolve_setting
from spmoe.trace.reader import TraceFile
from spmoe.trace.summary import summarise

TRACE = ROOT / "traces" / "pico.jsonl"
RUNS = RESULTS / "fidelity"
RESULT = RESULTS / "fidelity.json"
CACHES = (0.25, 0.5, 0.75)
RATIOS = (0.5, 1.0, 3.0)
TOKENS, REPEATS = 60, 5
BITS = 32


def engine(*arguments: object) -> None:
    """Runs the engine's command line on one thread; what it says goes to standard error."""
    command = [sys.executable, "-m", "engine", *map(str, arguments)]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **threads}, stdout=sys.stderr)


def link_speeds(machine: Hardware) -> dict[float, float]:
    """GB/s for each ratio of moving all experts that a round needs to computing it with all of them resident."""
    trace = TraceFile(TRACE)
    setting = resolve_setting(
        trace.header, summarise(trace).longest_request, RunOptions(hardware=machine, bits=BITS, cache=1.0, gamma=4)
    )
    runner, one = Runner(trace, setting), recipe("on-demand.lru")
    metrics = runner.run(one, setting.configure(one)[0])
    moved = metrics.needs * setting.geometry.expert_bytes(BITS)
    return {ratio: float(f"{moved / (ratio * (metrics.decode_ns - metrics.stall_ns)):.2g}") for ratio in RATIOS}


def run_file(ratio: float, cache: float) -> Path:
    return RUNS / f"pico-ratio-{ratio:g}-cache-{cache:.0%}.json".replace("%", "")


def measure(tokens: int, repeats: int, fresh: bool) -> list[Path]:
    """All run files, those that are missing measured now."""
    RUNS.mkdir(exist_ok=True)
    files = [run_file(ratio, cache) for ratio in RATIOS for cache in CACHES]
    missing = [file for file in files if fresh or not file.exists()]
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            profile = Path(folder) / "cpu.json"
            engine("profile", "--device", "cpu", "--turns", 1, "--out", profile)
            speeds = link_speeds(load_hardware(profile))
        for ratio in RATIOS:
            for cache in CACHES:
                if (out := run_file(ratio, cache)) in missing:
                    common = ("--device", "cpu", "--link-gbps", speeds[ratio], "--cache", cache, "--out", out)
                    engine("measure", TRACE, *common, "--tokens", tokens, "--repeats", repeats)
    return files


def summarised(found: Fidelity, files: Sequence[Path]) -> dict[str, Any]:
    """What is committed: all that `sim fidelity` says, and what it was measured on."""
    runs = {file.name: read_run(file) for file in files}
    settings = {
        name: {
            "tokens": run.trace.tokens,
            "slots": run.slots,
            "gamma": run.gamma,
            "link_gbps": run.link_gbps,
            "measured_on": run.hardware.source,
        }
        for name, run in runs.items()
    }
    return {"settings": settings, **found.to_json()}


def known() -> Fidelity:
    """What the result file says."""
    rows = read_json(RESULT)["policies"]
    return Fidelity(tuple(Compared(**{name: value for name, value in row.items() if name != "error"}) for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--fresh", action="store_true", help="measure all again")
    options = parser.parse_args()
    files = measure(options.tokens, options.repeats, options.fresh)
    found = fidelity(files, TRACE)
    write_json(RESULT, summarised(found, files))


if __name__ == "__main__":
    main()
