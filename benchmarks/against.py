"""How fast this checkout of the project is beside another one, measured in turn in the same run.

    python -m benchmarks.against BASE_CHECKOUT [--pairs N] [--only replay|engine] [--out FILE]

Two things are timed, each in fresh processes of the base and of this checkout by turns (base, new, base, new, ...):
replays of traces/mixtral.jsonl in the default setting, beside bare SimPy time-outs in the same process; and what the
engine's decisions and bookkeeping cost per layer, as each checkout's own benchmark of it measures that.  A process
warms up first and takes CPU time, so neither its start nor a busy machine counts for much; what remains is noise that
the ratios of the pairs (new / base) show: their minimum, median and maximum.  Below 1, the new one is faster.

A worker needs `sim.replay`, the trace reader, and the engine's benchmark under one of the names in `OVERHEAD`.  The
latter takes wall time: run that part on an idle machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results"
TRACE: Final = Path("traces", "mixtral.jsonl")
REPLAYED: Final = ("on-demand.lru", "spmoe.paper", "spmoe.foresight")
REPLAYS: Final = 3
"""Of each policy in a process, after the one that warms up."""
EVENTS_PER_STEP: Final = 400
"""Bare SimPy time-outs that stand for a step of a replay, as in the benchmark of replay speed."""

EXPERTS: Final = (8, 128)
BOOKKEPT: Final = ("on-demand.lru", "spmoe.per-layer", "spmoe.foresight")
CACHES: Final = (0.5, 1.0)
OVERHEAD: Final = (
    ("benchmarks.engine.overhead", "benchmarks.engine.random_pair"),
    ("benchmarks.engine_overhead", "benchmarks.random_pair"),
)
"""Where the benchmark of the engine's bookkeeping and the maker of its models have been, the latest place first."""


def cpu_seconds(action: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    action()
    return time.process_time() - start


def bare_simpy(events: int) -> None:
    """One process that does nothing but wait, `events` times."""
    import simpy

    env = simpy.Environment()

    def wait() -> Generator[simpy.Event, Any, None]:
        for _ in range(events):
            yield env.timeout(1)

    env.process(wait())
    env.run()


def replay_worker(policy: str) -> dict[str, float]:
    """Best and median CPU time of some replays of the trace in memory, and of as many rounds of bare SimPy.

    A replay counts from the end of its first step to that of its last, which its progress tells; what `sim.replay` does
    before and after (reading headers, the baseline to compare with, the bound) does not.
    """
    from sim import replay
    from spmoe.trace.reader import TraceFile
    from spmoe.trace.schema import TraceInMemory

    file = TraceFile(TRACE)
    trace = TraceInMemory(file.header, tuple(file))

    def steps_end() -> list[float]:
        ends: list[float] = []
        replay(trace, policy, progress=lambda name, _: ends.append(time.process_time()) if name == policy else None)
        return ends

    steps = len(steps_end())
    bare = partial(bare_simpy, EVENTS_PER_STEP * steps)
    bare()
    replays, bares = [], []
    for _ in range(REPLAYS):
        ends = steps_end()
        replays.append(ends[-1] - ends[0])
        bares.append(cpu_seconds(bare))
    return {
        "best_s": min(replays),
        "median_s": median(replays),
        "bare_best_s": min(bares),
        "to_bare": min(replays) / min(bares),
    }


def engine_worker() -> dict[str, dict[str, float]]:
    """What this checkout's benchmark of the engine's bookkeeping measures, case by case, on a random pair."""
    import torch

    torch.set_num_threads(1)
    overhead, random_pair = overhead_modules()
    found = {}
    for experts in EXPERTS:
        with tempfile.TemporaryDirectory() as folder:
            folders = random_pair.write_random_pair(Path(folder), overhead.SHAPES[experts])
            for policy, cache in product(BOOKKEPT, CACHES):
                measured = overhead.measure(experts, policy, cache, folders)
                figures = {key: measured[key] for key in ("median_us", "p10_us", "reference_us")}
                found[f"{experts} experts, {policy}, cache {cache}"] = figures
    return found


def overhead_modules() -> tuple[Any, Any]:
    """The first of `OVERHEAD` that this checkout has."""
    for names in OVERHEAD:
        try:
            overhead, random_pair = (importlib.import_module(name) for name in names)
        except ModuleNotFoundError as error:
            if error.name is None or not any(name.startswith(error.name) for name in names):
                raise
        else:
            return overhead, random_pair
    raise ModuleNotFoundError(f"none of {', '.join(name for name, _ in OVERHEAD)}")


WORKERS: Final[dict[str, Callable[..., Any]]] = {"replay": replay_worker, "engine": engine_worker}
WORKER: Final = """
import json, runpy, sys
from pathlib import Path
import sim
assert Path(sim.__file__).is_relative_to(Path.cwd()), sim.__file__
script, worker, *arguments = sys.argv[1:]
print(json.dumps(runpy.run_path(script)["WORKERS"][worker](*arguments)))
"""


def measured(checkout: Path, worker: str, *arguments: str) -> Any:
    """What a fresh process of a checkout measures."""
    command = [sys.executable, "-c", WORKER, str(Path(__file__).resolve()), worker, *arguments]
    done = subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {name: round(of(values), 4) for name, of in (("min", min), ("median", median), ("max", max))}


def beside(base: Sequence[dict[str, float]], new: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Ratios of all figures, pair by pair, and the figures of both sides."""
    return {
        "new_to_base": {key: spread([b[key] / a[key] for a, b in zip(base, new, strict=True)]) for key in base[0]},
        "base": {key: spread([one[key] for one in base]) for key in base[0]},
        "new": {key: spread([one[key] for one in new]) for key in new[0]},
    }


def compared_replays(base: Path, pairs: int) -> dict[str, Any]:
    """Replays of both checkouts by turns, policy by policy."""
    found = {}
    for policy in REPLAYED:
        turns = [[measured(checkout, "replay", policy) for checkout in (base, ROOT)] for _ in range(pairs)]
        found[policy] = beside([turn[0] for turn in turns], [turn[1] for turn in turns])
        print(policy, found[policy]["new_to_base"], flush=True)
    return found


def compared_engines(base: Path, pairs: int) -> dict[str, Any]:
    """The engine's bookkeeping in both checkouts by turns, case by case."""
    turns = [[measured(checkout, "engine") for checkout in (base, ROOT)] for _ in range(pairs)]
    found = {}
    for case in turns[0][0]:
        found[case] = beside([turn[0][case] for turn in turns], [turn[1][case] for turn in turns])
        print(case, found[case]["new_to_base"], flush=True)
    return found


def commit(checkout: Path) -> str:
    """The short name of what is checked out, with a mark where files differ from it."""
    describe = ["git", "describe", "--always", "--abbrev=7", "--exclude=*", "--dirty"]
    return subprocess.run(describe, cwd=checkout, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast this checkout is beside another one.")
    parser.add_argument("base", type=Path, metavar="BASE_CHECKOUT", help="a folder with the other state of the project")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="processes of each side (default 5)")
    parser.add_argument("--only", choices=tuple(WORKERS), help="one of the two measurements")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: benchmarks/results/against_COMMIT.json")
    options = parser.parse_args()
    base = options.base.resolve()
    name = commit(base)
    compare = {"replay": compared_replays, "engine": compared_engines}
    document = {
        "what": "new / base, pair by pair; replays in CPU time, the engine's bookkeeping per layer in wall time",
        "base": name,
        "new": commit(ROOT),
        "machine": f"{platform.machine()}, Python {platform.python_version()}, shared",
        "pairs": options.pairs,
        "replays_per_process": REPLAYS,
        "events_per_step": EVENTS_PER_STEP,
        **{part: run(base, options.pairs) for part, run in compare.items() if options.only in (None, part)},
    }
    out = options.out or RESULTS / f"against_{name.removesuffix('-dirty')}.json"
    out.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
