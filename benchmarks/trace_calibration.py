"""How well synthetic routing agrees with the real routing it is calibrated to.

    python benchmarks/trace_calibration.py

prints, for LRU and MIN, windows of 1, 5 and 17 tokens and caches of 25, 50 and 75 % of all experts, the hit rates (1 -
loads / needs, cold start counted) of real Mixtral-8x7B routing, of synthetic requests of the same lengths (mean over
seeds) and of the shipped trace's token lines, and writes them to benchmarks/results/trace_calibration.json.

The real routing is not in the repository: its column is recomputed where a folder `shared` lies beside it, and kept
from the committed file otherwise.  `--derive` writes anew the statistics that the generator reads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from spmoe.files import atomic_write
from spmoe.machine.geometry import geometry
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import ONE, ModelShape, TokenLine
from spmoe.trace.synthetic import model_shape
from spmoe.trace.synthetic_routing import SyntheticRouting
from spmoe.trace.synthetic_statistics import RoutingStatistics, measure_statistics, mixtral_statistics
from spmoe.trace.vllm import read_jsonl

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data" / "mixtral-8x7b-instruct.humaneval.jsonl"
TRACE = ROOT / "traces" / "mixtral.jsonl"
STATISTICS = ROOT / "spmoe" / "trace" / "synthetic_mixtral.json"
RESULTS = ROOT / "benchmarks" / "results" / "trace_calibration.json"

WINDOWS = (1, 5, 17)  # tokens
SLOTS = (64, 128, 192)  # of 256
POLICIES = ("lru", "min")
LENGTHS = (83, 255)  # the real requests
SEEDS = 20
NEVER = 1 << 60

Row = Sequence[Sequence[int]]  # one token: per layer, expert ids by rank
Visit = tuple[int, ...]  # the distinct keys one layer needs in one window, in routing order


def visits(requests: Iterable[Sequence[Row]], window: int, experts: int) -> list[Visit]:
    """Cuts each request into consecutive windows, the last one short, and walks the layers of each."""
    found = []
    for request in requests:
        for start in range(0, len(request), window):
            for layer, cells in enumerate(zip(*request[start : start + window], strict=True)):
                found.append(tuple(dict.fromkeys(layer * experts + expert for cell in cells for expert in cell)))
    return found


def lru_loads(needs: Sequence[Visit], slots: int) -> int:
    """Residents are touched first, then misses are loaded; what the layer needs is never a victim."""
    cache: dict[int, None] = {}
    loads = 0
    for visit in needs:
        for key in [key for key in visit if key in cache]:
            del cache[key]
            cache[key] = None
        for key in visit:
            if key not in cache:
                loads += 1
                if len(cache) == slots:
                    del cache[next(old for old in cache if old not in visit)]
                cache[key] = None
    return loads


def min_loads(needs: Sequence[Visit], slots: int) -> int:
    """Belady's MIN with bypass: after each layer the keys with the nearest next use stay."""
    upcoming: dict[int, int] = {}
    next_uses: list[list[int]] = [[]] * len(needs)
    for index in range(len(needs) - 1, -1, -1):
        next_uses[index] = [upcoming.get(key, NEVER) for key in needs[index]]
        upcoming.update(dict.fromkeys(needs[index], index))
    cache: dict[int, int] = {}
    loads = 0
    for visit, uses in zip(needs, next_uses, strict=True):
        loads += sum(key not in cache for key in visit)
        cache.update(zip(visit, uses, strict=True))
        if len(cache) > slots:
            cache = dict(sorted(cache.items(), key=lambda item: (item[1], item[0]))[:slots])
    return loads


def hit_rates(requests: Sequence[Sequence[Row]], experts: int = 8) -> dict[str, float]:
    """Hit rate in percent by "policy/window/slots"."""
    rates = {}
    for window in WINDOWS:
        needs = visits(requests, window, experts)
        total = sum(map(len, needs))
        for slots in SLOTS:
            rates[f"lru/{window}/{slots}"] = 100 * (1 - lru_loads(needs, slots) / total)
            rates[f"min/{window}/{slots}"] = 100 * (1 - min_loads(needs, slots) / total)
    return rates


def synthetic_rates(seeds: int = SEEDS) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation over seeds, of requests as long as the real ones."""
    routing = SyntheticRouting(mixtral_statistics())
    runs = [hit_rates([tokens.experts.tolist() for tokens in routing.tokens(LENGTHS, seed)]) for seed in range(seeds)]
    values = {name: [run[name] for run in runs] for name in runs[0]}
    return {n: float(np.mean(v)) for n, v in values.items()}, {n: float(np.std(v, ddof=1)) for n, v in values.items()}


def shipped_rates() -> dict[str, float]:
    """Of the token lines of `traces/mixtral.jsonl` alone, prompts left out, as if the cache were empty at the start."""
    requests: dict[int, list[Row]] = {}
    for line in TraceFile(TRACE, forecasts=()):
        if isinstance(line, TokenLine):
            requests.setdefault(line.request, []).append(line.routed)
    return hit_rates(list(requests.values()))


def derived_statistics(model: ModelShape) -> RoutingStatistics:
    """The statistics of the real routing, with the committed fit."""
    committed = mixtral_statistics()
    requests = []
    for request in read_jsonl(REAL, model):
        missing = (-1,) * model.top_k
        routed = np.array([[cell or missing for cell in row] for row in request.routed])
        weights = np.array([[cell or missing for cell in row] for row in request.weights or []]) / ONE
        requests.append((routed, weights))
    return measure_statistics(requests, model.experts, committed.source, committed.fit)


def table(results: dict[str, dict[str, float]]) -> str:
    """The README's table, in Markdown."""
    lines = [
        "| policy | window | cache | real | synthetic (sd) | difference | shipped trace | difference |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for policy in POLICIES:
        for window in WINDOWS:
            for slots in SLOTS:
                name = f"{policy}/{window}/{slots}"
                real, mean, sd, shipped = (results[c][name] for c in ("real", "synthetic", "synthetic_sd", "shipped"))
                lines.append(
                    f"| {policy.upper()} | {window} | {slots / 256:.0%} | {real:.1f} | {mean:.1f} ({sd:.1f}) "
                    f"| {mean - real:+.1f} | {shipped:.1f} | {shipped - real:+.1f} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--derive", action="store_true", help="rewrite the statistics from the real routing, and stop")
    derive = parser.parse_args().derive
    model = model_shape(geometry("mixtral-8x7b"))
    if derive:
        with atomic_write(STATISTICS) as file:
            file.write(statistics_text(derived_statistics(model)))
        return
    if REAL.exists():
        real = hit_rates([request.routed for request in read_jsonl(REAL, model)])
    else:
        print(f"{REAL.name} is not there: the real column is the committed one")
        real = json.loads(RESULTS.read_text(encoding="utf-8"))["real"]
    mean, sd = synthetic_rates()
    columns = {"real": real, "synthetic": mean, "synthetic_sd": sd, "shipped": shipped_rates()}
    results = {column: {name: round(rate, 3) for name, rate in rates.items()} for column, rates in columns.items()}
    what = "hit rates in percent by policy/window in tokens/slots of 256; synthetic: mean and sd over seeds"
    RESULTS.parent.mkdir(exist_ok=True)
    with atomic_write(RESULTS) as file:
        json.dump({"what": what, "lengths": LENGTHS, "seeds": SEEDS, **results}, file, indent=1)
        file.write("\n")
    print(table(results))


def statistics_text(statistics: RoutingStatistics) -> str:
    """JSON with one line per list of numbers."""
    fields = asdict(statistics)
    rows = ",\n  ".join(json.dumps(row) for row in fields["popularity"])
    parts = [f'"{name}": {json.dumps(value)}' for name, value in fields.items() if name != "popularity"]
    parts.insert(2, f'"popularity": [\n  {rows}\n ]')
    return "{\n " + ",\n ".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
