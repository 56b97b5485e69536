"""How close the simulator comes to what the engine measures on this CPU, over caches and speeds of an emulated link.

    python -m benchmarks.engine.fidelity [--tokens N] [--repeats N] [--fresh]

The shipped pair with random weights follows traces/pico.jsonl under every lossless policy that runs natively, with
slots for 25, 50 and 75 % of the experts, over links for which moving all experts that a round needs would take half as
long as computing it, as long, and three times as long: `engine measure`, with one thread for torch, as the link needs a
core of its own.  Run files go to benchmarks/results/fidelity, and one that is there is not measured again unless
`--fresh`; `sim fidelity` reads them all, and what it says goes to benchmarks/results/fidelity.json and into
docs/fidelity.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.pages.markers import ROOT, embed
from sim.runner import Runner
from sim.studies.fidelity import Compared, Fidelity, fidelity
from spmoe.files import atomic_write
from spmoe.machine.hardware import Hardware, load_hardware
from spmoe.policy.registry import recipe
from spmoe.results.run import read_run
from spmoe.run.setting import resolve_setting
from spmoe.trace.reader import TraceFile
from spmoe.trace.summary import summarise

TRACE = ROOT / "traces" / "pico.jsonl"
RUNS = ROOT / "benchmarks" / "results" / "fidelity"
RESULT = ROOT / "benchmarks" / "results" / "fidelity.json"
PAGE = ROOT / "docs" / "fidelity.md"
PICTURE = ROOT / "docs" / "fidelity.svg"
README = ROOT / "README.md"
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
        trace.header, summarise(trace).longest_request, hardware=machine, bits=BITS, cache=1.0, gamma=4
    )
    runner, one = Runner(trace, setting), recipe("on-demand.lru")
    metrics = runner.run(one, runner.configure(one)[0])
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


def page(found: Fidelity, files: Sequence[Path]) -> Iterator[str]:
    """The table of the page."""
    runs = {file.name: read_run(file) for file in files}
    some = next(iter(runs.values()))
    yield (
        f"{some.hardware.source.partition(';')[0]}; {some.trace.tokens} tokens of traces/{some.trace.name}, gamma "
        f"{some.gamma}, {len(some.policies)} policies, {len(some.policies[0].tpots_ms)} runs each."
    )
    yield ""
    yield "| link/compute | cache | link GB/s | median error | largest error | its policy | beyond its limit | tau |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in found.runs():
        run = runs[one.policies[0].run]
        ratio, cache = next((r, c) for r in RATIOS for c in CACHES if run_file(r, c).name == one.policies[0].run)
        tau = one.kendall_tau
        yield (
            f"| {ratio:g} | {cache:.0%} | {run.link_gbps:g} | {one.median_error:.1%} | {one.max_error:.1%} | "
            f"`{one.worst.policy}` | {len(one.beyond)} | {'-' if tau is None else f'{tau:.3f}'} |"
        )
    tau, beyond = found.kendall_tau, f"{len(found.beyond)} of {len(found.policies)}"
    yield (
        f"| all | | | {found.median_error:.1%} | {found.max_error:.1%} | `{found.worst.policy}` | {beyond} | "
        f"{'-' if tau is None else f'{tau:.3f}'} |"
    )
    yield ""
    yield "By policy, over all runs:"
    yield ""
    yield "| policy | median error | largest | mean (signed) | median spread |"
    yield "|---|---|---|---|---|"
    for name in dict.fromkeys(each.policy for each in found.policies):
        of = [each for each in found.policies if each.policy == name]
        yield _by_policy(name, of)


def _by_policy(name: str, compared: Sequence[Compared]) -> str:
    sizes = sorted(abs(each.error) for each in compared)
    spreads = sorted(each.spread for each in compared)
    mean = sum(each.error for each in compared) / len(compared)
    middle = len(compared) // 2
    return f"| `{name}` | {sizes[middle]:.1%} | {sizes[-1]:.1%} | {mean:+.1%} | {spreads[middle]:.1%} |"


def sentence(found: Fidelity) -> Iterator[str]:
    """What the README says."""
    tau, runs = found.kendall_tau, list(found.runs())
    yield (
        f"On the CPU, with the small pair and links of three speeds, {len(found.policies)} policies and settings: "
        f"median error {found.median_error:.1%},"
    )
    yield (
        f"largest {found.max_error:.1%}, where runs spread by {median(each.spread for each in found.policies):.1%}; "
        f"Kendall's tau of the rankings {0 if tau is None else tau:.2f}. As close as is asked"
    )
    yield f"for are {sum(run.on_target for run in runs)} of {len(runs)} settings."


def draw(found: Fidelity, path: Path) -> None:
    """Predicted against measured, one point per policy and run."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "fidelity"
    figure, axes = pyplot.subplots(figsize=(6, 5.2))
    for ratio in RATIOS:
        names = {run_file(ratio, cache).name for cache in CACHES}
        points = [each for each in found.policies if each.run in names]
        measured, predicted = [each.measured_tpot_ms for each in points], [each.predicted_tpot_ms for each in points]
        axes.scatter(measured, predicted, s=12, label=f"link/compute {ratio:g}")
    ends = [
        min(each.measured_tpot_ms for each in found.policies),
        max(each.measured_tpot_ms for each in found.policies),
    ]
    axes.plot(ends, ends, color="grey", linewidth=1)
    axes.fill_between(ends, [0.88 * end for end in ends], [1.12 * end for end in ends], color="grey", alpha=0.15)
    axes.set(xscale="log", yscale="log", xlabel="measured ms per token", ylabel="predicted ms per token")
    axes.legend(title="grey: within 12 %")
    figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")


def known() -> Fidelity:
    """What the result file says."""
    rows = json.loads(RESULT.read_text("utf-8"))["policies"]
    return Fidelity(tuple(Compared(**{name: value for name, value in row.items() if name != "error"}) for row in rows))


def write_pages(found: Fidelity, files: Sequence[Path]) -> None:
    embed(PAGE, "fidelity", page(found, files), "engine/fidelity")
    embed(README, "fidelity summary", sentence(found), "engine/fidelity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--fresh", action="store_true", help="measure all again")
    options = parser.parse_args()
    files = measure(options.tokens, options.repeats, options.fresh)
    found = fidelity(files, TRACE)
    with atomic_write(RESULT) as stream:
        stream.write(json.dumps(summarised(found, files), indent=1) + "\n")
    write_pages(found, files)
    draw(found, PICTURE)
    print("\n".join(page(found, files)))


if __name__ == "__main__":
    main()
