"""Digests of every decision, to compare two states of the code: a change that alters none gives the same file.

    python -m benchmarks.decisions OUT.jsonl [--quick] [--only sim|recorded|engine] [--logs FOLDER]
    python -m benchmarks.decisions --compare BEFORE.jsonl AFTER.jsonl

A line per run: the case, the digest of its decision log, and its results.  Runs are replays of excerpts of all shipped
traces under every policy (several caches, draft lengths, machines; with and without CPU), of the recorded routing of
Mixtral-8x7B where that is at hand, and the engine in virtual time on the pico pair.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import islice, product
from pathlib import Path
from typing import Any, Final

from sim import replay
from spmoe.errors import InputError
from spmoe.machine.geometry import geometry
from spmoe.policy.registry import RECIPES
from spmoe.trace.draws import Rates
from spmoe.trace.importers import import_trace
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import ModelShape, PrefillLine, TokenLine, Trace, TraceInMemory

ROOT: Final = Path(__file__).resolve().parents[1]
RECORDING: Final = ROOT.parent / "shared" / "data" / "mixtral-8x7b-instruct.humaneval.jsonl"
TRACES: Final = ("mixtral", "deepseek-v2-lite", "pico-32l", "pico")
TOKENS: Final = {"mixtral": 72, "deepseek-v2-lite": 48, "pico-32l": 72, "pico": 120}
"""Of each trace's excerpt."""
OPTIONS: Final[tuple[dict[str, Any], ...]] = (
    {"cache": 0.5},
    {"cache": 0.25, "gamma": 2},
    {"cache": 0.75, "gamma": 4, "cpu_experts": False},
    {"cache": 0.5, "gamma": 0, "hardware": "rtx-3090"},
    {"cache": 0.125, "bits": 16, "cpu_experts": False},
    {"cache": 0.6, "gamma": 8, "hardware": "rtx-3090", "bits": 16},
    {"cache": 0.4, "gamma": 4, "cutoff": 3},
    {"cache": 1.0, "gamma": 4},
)
QUICK: Final = 2
"""So many of them in a quick dump."""
PROMPTS: Final = (((1, 5, 9, 33, 7), 8), ((4,), 3), ((60, 3, 3, 8, 12, 40, 40), 6))


def beginning(trace: Trace, tokens: int) -> TraceInMemory:
    """The first `tokens` token lines, spread over the first requests: a request gives a third at most."""
    lines: list[PrefillLine | TokenLine] = []
    of_request: dict[int, int] = {}
    for line in trace:
        if isinstance(line, PrefillLine):
            lines.append(line)
        elif of_request.get(line.request, 0) < -(-tokens // 3):
            lines.append(line)
            of_request[line.request] = of_request.get(line.request, 0) + 1
        if sum(of_request.values()) == tokens:
            break
    while isinstance(lines[-1], PrefillLine):
        lines.pop()
    return TraceInMemory(replace(trace.header, tokens=sum(of_request.values())), tuple(lines))


def recorded(seed: int) -> TraceInMemory:
    """The recorded routing of Mixtral-8x7B; what it lacks is drawn."""
    known = geometry("mixtral-8x7b")
    fields = ("name", "layers", "experts", "top_k", "expert_params", "dense_params", "kv_bytes_per_token")
    shape = ModelShape(*(getattr(known, field) for field in fields))
    rates = Rates(agreement=0.9, draft_accuracy=0.889, next_gate_accuracy=0.85)
    return TraceInMemory(*import_trace(RECORDING, "vllm-jsonl", shape, None, rates, seed))


def replayed(name: str, trace: Trace, options: dict[str, Any], folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Every policy's line and log."""
    log = folder / "decisions.log"
    for policy in RECIPES:
        case = {"run": "sim", "trace": name, "policy": policy, **options}
        try:
            found = replay(trace, [policy], lossy=True, log=log, **options).to_json()
        except InputError:
            yield {"case": case, "left_out": True}, ""
            continue
        text = log.read_text("utf-8")
        yield {"case": case, **digest(text), "found": found}, text


def executed(quick: bool) -> Iterator[tuple[dict[str, Any], str]]:
    """Every policy's line and log, run by the engine in virtual time on the pico pair."""
    # The engine is heavy to import, and the simulator's part does without it.
    from tests.engine.drafted import Pair
    from tests.engine.runs import FAST, SLOW, Request, run, run_knowing

    pair = Pair(ROOT / "models" / "pico" / "target", ROOT / "models" / "pico" / "draft")
    asked = [Request(*each) for each in PROMPTS]
    for (slots, machine, gamma), (policy, one) in product(
        [(20, "slow", 3)] if quick else [(20, "slow", 3), (40, "fast", None), (64, "slow", 4)], RECIPES.items()
    ):
        case = {"run": "engine", "slots": slots, "machine": machine, "gamma": gamma, "policy": policy}
        options: dict[str, Any] = {"policy": policy, "slots": slots, "gamma": gamma, "sampling": {"ignore_eos": True}}
        hardware = SLOW if machine == "slow" else FAST
        try:
            if one.needs & {"popularity", "hindsight", "future"}:
                with tempfile.TemporaryDirectory() as folder:
                    done = run_knowing(Path(folder), pair, asked, hardware, **options)
            else:
                done = run(pair, asked, hardware, **options)
        except InputError:
            yield {"case": case, "left_out": True}, ""
            continue
        yield {"case": case, **digest(done.log), "tokens": done.tokens, "found": done.document["results"]}, done.log


def digest(log: str) -> dict[str, Any]:
    """What a line says of a log."""
    return {"log": sha256(log.encode()).hexdigest(), "lines": log.count("\n")}


def lines(quick: bool, only: str | None) -> Iterator[tuple[dict[str, Any], str]]:
    """All runs."""
    options = OPTIONS[:QUICK] if quick else OPTIONS
    with tempfile.TemporaryDirectory() as folder:
        if only in (None, "sim"):
            for name in TRACES:
                trace = beginning(TraceFile(ROOT / "traces" / f"{name}.jsonl"), TOKENS[name] // (4 if quick else 1))
                for each in options:
                    yield from replayed(name, trace, each, Path(folder))
        if only in (None, "recorded") and RECORDING.exists():
            for seed in range(1 if quick else 2):
                trace = beginning(recorded(seed), 20 if quick else 60)
                for each in islice(options, 1 if quick else 4):
                    yield from replayed(f"recorded, seed {seed}", trace, each, Path(folder))
    if only in (None, "engine"):
        yield from executed(quick)


def dump(out: Path, quick: bool, only: str | None, logs: Path | None) -> None:
    """Write all lines, and the logs themselves where they are asked for."""
    if logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as stream:
        for number, (line, log) in enumerate(lines(quick, only)):
            stream.write(json.dumps(line, sort_keys=True) + "\n")
            if logs is not None:
                (logs / f"{number:04}-{line['case']['policy']}.log").write_text(log, "utf-8")


def differences(before: Path, after: Path) -> list[str]:
    """What differs, a line per case: how, and where first."""
    files = [
        {json.dumps(line.pop("case"), sort_keys=True): line for line in map(json.loads, path.open())}
        for path in (before, after)
    ]
    found = [
        f"only in {path}: {case}"
        for path, one, other in ((before, *files), (after, *reversed(files)))
        for case in one
        if case not in other
    ]
    for case, line in files[0].items():
        other = files[1].get(case, line)
        found += [f"{case}: {field}" for field in line.keys() | other.keys() if line.get(field) != other.get(field)]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Digests of every decision, to compare two states of the code.")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--quick", action="store_true", help="fewer cases, in a minute or two")
    parser.add_argument("--only", choices=("sim", "recorded", "engine"))
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the logs themselves, too")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    options = parser.parse_args()
    if options.compare:
        found = differences(*options.compare)
        print("\n".join(found) or "the same decisions and results")
        return 1 if found else 0
    if options.out is None:
        parser.error("expected OUT or --compare")
    dump(options.out, options.quick, options.only, options.logs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
