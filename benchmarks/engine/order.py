"""Whether the engine ranks foresight's rows as the simulator does, over a slow emulated link, and their text is right.

    python -m benchmarks.engine.order [--repeats N]

`engine measure` times the bundled pair with random weights on this CPU: it follows traces/pico.jsonl, with slots for
half of the experts and one thread for torch, over a link of 0.15 GB/s.  (Moving all experts that a round needs takes
some eight times as long, then, as computing it on two idle cores: docs/fidelity.md.)  First come rows that only fetch,
then those that share misses with the CPU.  `sim fidelity` simulates both under the profile that was measured between
the runs.  `engine run` then generates greedy text with the real weights, over the same link and under each of the rows,
and compares it with plain transformers'.  Results go to benchmarks/results/engine_order.json; `python -m
benchmarks.pages order` makes a table of them.  Some eight minutes on idle cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.engine.fidelity import TRACE, engine
from benchmarks.files import RESULTS, ROOT, write_json
from sim.studies.fidelity import Fidelity, fidelity
from spmoe.results.run import read_run

RESULT = RESULTS / "engine_order.json"
PROMPTS = ROOT / "models" / "pico" / "prompts.jsonl"
FETCHING = (
    "on-demand.lru",
    "on-demand.lru-per-layer",
    "spmoe.paper",
    "spmoe.per-layer",
    "least-stale.spec",
    "spmoe.foresight.history",
    "spmoe.foresight.eviction",
    "spmoe.foresight.prefetch",
    "spmoe.foresight.run-ahead",
    "spmoe.foresight",
)
SPLITTING = ("spmoe.foresight.split", "spmoe.foresight")
SETS = {"misses fetched": FETCHING, "CPU on": SPLITTING}
LINK_GBPS, CACHE, GAMMA = 0.15, 0.5, 4
TOKENS, REPEATS = 60, 5
PROMPT_COUNT, NEW_TOKENS = 4, 24


def allowed(misses: str) -> tuple[str, ...]:
    """What the engine is told of the CPU."""
    return ("--no-cpu-experts",) if misses == "misses fetched" else ()


def measure(folder: Path, repeats: int) -> dict[str, Path]:
    """Run files, one for each set of rows."""
    files = {misses: folder / f"{misses}.json" for misses in SETS}
    for misses, file in files.items():
        common = ("--device", "cpu", "--link-gbps", LINK_GBPS, "--cache", CACHE, "--gamma", GAMMA, *allowed(misses))
        rows = ("--policy", *SETS[misses])
        engine("measure", TRACE, *common, *rows, "--tokens", TOKENS, "--repeats", repeats, "--out", file)
    return files


def texts(folder: Path, misses: str, run: Path) -> Iterator[dict[str, Any]]:
    """Of each row, and of the last at lengths that it chooses, how its greedy text compares with plain transformers'.

    A difference that rounding does not explain ends it with an error.
    """
    profile, stats = folder / "measured.json", folder / "stats.json"
    profile.write_text(json.dumps(json.loads(run.read_text("utf-8"))["profile"]))
    prompts = [json.loads(line) for line in PROMPTS.read_text("utf-8").splitlines()[:PROMPT_COUNT]]
    asked = ("--prompt", *prompts, "--max-new-tokens", NEW_TOKENS, "--against-plain", "--stats", stats)
    machine = (
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--cache",
        CACHE,
        "--link-gbps",
        LINK_GBPS,
        "--hardware",
        profile,
    )
    for policy, gamma in (*((row, GAMMA) for row in SETS[misses]), (SETS[misses][-1], None)):
        length = () if gamma is None else ("--gamma", gamma)
        engine("run", *asked, *machine, "--hardware", profile, "--policy", policy, *length, *allowed(misses))
        plain = json.loads(stats.read_text("utf-8"))["config"]["engine"]["plain"]
        yield {"policy": policy, "gamma": gamma, "requests": plain["requests"], "tokens": plain["tokens"]} | {
            "different": len(plain["differences"])
        }


def summarised(files: Mapping[str, Path], found: Fidelity) -> dict[str, Any]:
    """Rows of each set as they were measured and simulated, and of their pairs those that are apart."""
    sets = {}
    for one, (misses, file) in zip(found.runs(), files.items(), strict=True):
        loads = {each.policy: each.loads for each in read_run(file).policies}
        apart = list(one.pairs())
        sets[misses] = {
            "rows": [
                {
                    "policy": each.policy,
                    "loads": loads[each.policy],
                    "predicted_tpot_ms": round(each.predicted_tpot_ms, 3),
                    "measured_tpot_ms": round(each.measured_tpot_ms, 3),
                    "spread": round(each.spread, 4),
                }
                for each in one.policies
            ],
            "pairs": len(list(combinations(one.policies, 2))),
            "apart": len(apart),
            "other way round": [[each.faster.policy, each.slower.policy] for each in apart if not each.agreed],
            "kendall_tau": one.kendall_tau,
        }
    return sets


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether the engine ranks foresight's rows as the simulator does.")
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = measure(folder, options.repeats)
        found = fidelity(files.values(), TRACE)
        run = read_run(files["misses fetched"])
        known = {
            "setting": {
                "measured_on": run.hardware.source,
                "trace": run.trace.name,
                "tokens": run.trace.tokens,
                "slots": run.slots,
                "gamma": run.gamma,
                "link_gbps": run.link_gbps,
                "repeats": options.repeats,
            },
            "sets": summarised(files, found),
            "texts": [
                {"misses": misses, **one} for misses, file in files.items() for one in texts(folder, misses, file)
            ],
        }
    write_json(RESULT, known)


if __name__ == "__main__":
    main()
