"""How well synthetic routing agrees with the real routing it is calibrated to, and with published figures.

    python -m benchmarks.sim.trace_calibration [--model NAME]

For mixtral-8x7b: prints, for LRU and MIN, windows of 1, 5 and 17 tokens and caches of 25, 50 and 75 % of all experts,
the hit rates (1 - loads / needs, cold start counted) of real Mixtral-8x7B routing, of synthetic requests of the same
lengths (mean over seeds) and of the shipped trace's token lines; to benchmarks/results/trace_calibration.json.

For every other model with published locality: the published figures beside those of synthetic requests (mean over
seeds, warm cache); to benchmarks/results/trace_calibration_models.json.  Without --model: all of them.

The real routing is not in the repository: its column is recomputed where a folder `shared` lies beside it, and kept
from the committed file otherwise.  `--derive` writes anew the statistics that the generator reads.
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spmoe.files import atomic_write
from spmoe.machine.geometry import Geometry, geometry
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import ONE, ModelShape, TokenLine
from spmoe.trace.synthetic import model_shape
from spmoe.trace.synthetic_models import model_statistics
from spmoe.trace.synthetic_routing import SyntheticRouting
from spmoe.trace.synthetic_statistics import RoutingStatistics, measure_statistics, mixtral_statistics
from spmoe.trace.vllm import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "mixtral-8x7b-instruct.humaneval.jsonl"
TRACE = ROOT / "traces" / "mixtral.jsonl"
STATISTICS = ROOT / "spmoe" / "trace" / "synthetic_mixtral.json"
RESULTS = ROOT / "benchmarks" / "results" / "trace_calibration.json"
MODEL_RESULTS = ROOT / "benchmarks" / "results" / "trace_calibration_models.json"

MIXTRAL = "mixtral-8x7b"
WINDOWS = (1, 5, 17)  # tokens
SLOTS = (64, 128, 192)  # of 256
POLICIES = ("lru", "min")
LENGTHS = (83, 255)  # the real requests
SEEDS = 20
NEVER = 1 << 60


class Locality(NamedTuple):
    """What is published of a model's routing, one token at a time.

    GitHub repository harshithkantamneni/moe-speed-of-light (not peer-reviewed): text that the model itself sampled,
    32,601 to 152,470 tokens in conversations of 450 to 950, one LRU or MIN cache per layer, carried across
    conversations, the first tenth not counted.  Reads and shares from prereg/policy_study_outcome.md (commit 3a74200),
    reuse from prereg/provenance/provenance.md (fae7444) and prereg/provenance_ext/provenance.md (e392e9c), column S.
    """

    lru: tuple[float, float, float]  # reads per token, all layers, at each of `BUDGETS`
    min: tuple[float, float, float]  # the same of MIN with bypass
    share: tuple[float, float, float]  # percent of a layer's routings that go to so many of its experts, the most used
    reuse: float  # percent of a token's experts that the token before it had too


BUDGETS = (0.125, 0.25, 0.375)  # of each layer's experts
PUBLISHED = {
    "deepseek-v2-lite": Locality((108.7, 82.7, 61.9), (74.2, 46.8, 30.4), (17, 31, 44), 25.4),
    "phi-3.5-moe": Locality((36.1, 24.0, 15.9), (26.3, 14.4, 8.4), (22, 39, 53), 43.2),
    "qwen3-30b-a3b": Locality((148.2, 73.2, 35.5), (86.5, 35.4, 15.7), (26, 43, 58), 43.8),
    "olmoe-1b-7b": Locality((68.3, 44.6, 30.2), (47.5, 25.5, 14.9), (31, 50, 63), 46.2),
    "gpt-oss-20b": Locality((51.4, 31.1, 18.0), (35.8, 17.4, 8.8), (25, 45, 61), 46.4),
    "gpt-oss-120b": Locality((53.7, 28.3, 15.3), (30.3, 13.7, 6.9), (36, 56, 71), 31.0),
}
GLOBAL_LRU = {"deepseek-v2-lite": 47.7}  # hit rate in percent at 25 % cache: HybriMoE, arXiv 2504.05897
WARM_LENGTHS = (500, 500, 500)  # requests; the first only warms the cache
SAMPLED_LAYERS = 8  # measured one by one; all layers of these models have the same statistics

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


def lru_loads(needs: Sequence[Visit], slots: int, warm: int = 0) -> int:
    """Residents are touched first, then misses are loaded; what the layer needs is never a victim.

    Loads of the first `warm` visits are not counted.
    """
    cache: OrderedDict[int, None] = OrderedDict()  # a dict would walk over all that left before it finds the oldest
    loads = 0
    for number, visit in enumerate(needs):
        if number == warm:
            loads = 0
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


def min_loads(needs: Sequence[Visit], slots: int, warm: int = 0) -> int:
    """Belady's MIN with bypass: after each layer the keys with the nearest next use stay.

    Loads of the first `warm` visits are not counted.
    """
    upcoming: dict[int, int] = {}
    next_uses: list[list[int]] = [[]] * len(needs)
    for index in range(len(needs) - 1, -1, -1):
        next_uses[index] = [upcoming.get(key, NEVER) for key in needs[index]]
        upcoming.update(dict.fromkeys(needs[index], index))
    cache: dict[int, int] = {}
    loads = 0
    for number, (visit, uses) in enumerate(zip(needs, next_uses, strict=True)):
        if number == warm:
            loads = 0
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


def shipped_requests(path: Path) -> list[list[Row]]:
    """The token lines of a shipped trace by request, prompts left out."""
    requests: dict[int, list[Row]] = {}
    for line in TraceFile(path, forecasts=()):
        if isinstance(line, TokenLine):
            requests.setdefault(line.request, []).append(line.routed)
    return list(requests.values())


def shipped_rates() -> dict[str, float]:
    """Of the token lines of `traces/mixtral.jsonl` alone, as if the cache were empty at the start."""
    return hit_rates(shipped_requests(TRACE))


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


def published_figures(model: Geometry) -> dict[str, float]:
    """What is published of `model`, in percent, by the names that `synthetic_figures` gives."""
    published = PUBLISHED[model.name]
    needs = model.layers * model.top_k
    figures = {"reuse": published.reuse}
    for index, budget in enumerate(BUDGETS):
        figures[f"lru/{budget:g}"] = 100 * (1 - published.lru[index] / needs)
        figures[f"min/{budget:g}"] = 100 * (1 - published.min[index] / needs)
        figures[f"share/{budget:g}"] = published.share[index]
    if model.name in GLOBAL_LRU:
        figures["global-lru/0.25"] = GLOBAL_LRU[model.name]
    return figures


def synthetic_figures(model: Geometry, seed: int) -> dict[str, float]:
    """In percent, of three synthetic requests, the first of which only warms the caches: hit rates of LRU and MIN with
    one cache per layer, of LRU with one cache for all layers, reuse and share as `Locality` has them.
    """
    requests = [tokens.experts for tokens in SyntheticRouting(model_statistics(model)).tokens(WARM_LENGTHS, seed)]
    layers = range(min(SAMPLED_LAYERS, model.layers))
    warm = WARM_LENGTHS[0]
    alike = [(r[1:, layers, :, None] == r[:-1, layers, None, :]).any(axis=3).mean() for r in requests]
    figures = {"reuse": 100 * float(np.mean(alike))}
    rows = np.concatenate(requests)
    per_layer = [[tuple(cell) for cell in rows[:, layer].tolist()] for layer in layers]
    counts = [np.sort(np.bincount(rows[:, layer].ravel(), minlength=model.experts))[::-1] for layer in layers]
    for budget in BUDGETS:
        slots = int(budget * model.experts + 0.5)
        scored = (len(rows) - warm) * model.top_k * len(layers)
        for name, loads in (("lru", lru_loads), ("min", min_loads)):
            total = sum(loads(needs, slots, warm) for needs in per_layer)
            figures[f"{name}/{budget:g}"] = 100 * (1 - total / scored)
        figures[f"share/{budget:g}"] = 100 * float(np.mean([c[:slots].sum() / c.sum() for c in counts]))
    figures["global-lru/0.25"] = global_lru([rows.tolist()], model, warm)
    return figures


def global_lru(requests: Iterable[Sequence[Row]], model: Geometry, warm: int) -> float:
    """Hit rate in percent of one LRU cache of a quarter of all experts, the first `warm` tokens not counted."""
    needs = visits(requests, 1, model.experts)
    uncounted = warm * model.layers
    return 100 * (1 - lru_loads(needs, model.keys // 4, uncounted) / sum(map(len, needs[uncounted:])))


def model_table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The README's table of models, in Markdown."""
    columns = ("lru/0.125", "lru/0.25", "lru/0.375", "global-lru/0.25", "min/0.125", "min/0.25", "min/0.375", "reuse")
    lines = [
        "| model | | LRU 12.5% | LRU 25% | LRU 37.5% | global LRU 25% | MIN 12.5% | MIN 25% | MIN 37.5% | reuse |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, result in results.items():
        for label in ("published", "synthetic"):
            cells = [f"{result[label][column]:.1f}" if column in result[label] else "" for column in columns]
            lines.append(f"| {name} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def calibrate_models(names: Iterable[str]) -> None:
    """Measures the models of these names anew; the results of the others stay."""
    results = json.loads(MODEL_RESULTS.read_text(encoding="utf-8"))["models"] if MODEL_RESULTS.exists() else {}
    for name in names:
        model = geometry(name)
        runs = [synthetic_figures(model, seed) for seed in range(SEEDS)]
        found = {figure: [run[figure] for run in runs] for figure in runs[0]}
        columns = {
            "published": published_figures(model),
            "synthetic": {figure: float(np.mean(values)) for figure, values in found.items()},
            "synthetic_sd": {figure: float(np.std(values, ddof=1)) for figure, values in found.items()},
        }
        shipped = TRACE.with_name(f"{name}.jsonl")
        if shipped.exists():
            columns["shipped"] = {"global-lru/0.25": global_lru(shipped_requests(shipped), model, 0)}
        results[name] = {
            column: {figure: round(value, 2) for figure, value in figures.items()}
            for column, figures in columns.items()
        }
    results = {name: results[name] for name in PUBLISHED if name in results}
    what = "percent; lru, min: hit rates with one cache per layer, by its share of the experts; synthetic: over seeds, "
    what += "warm; shipped: token lines, cold start counted"
    write_results(MODEL_RESULTS, {"what": what, "lengths": WARM_LENGTHS, "seeds": SEEDS, "models": results})
    print(model_table(results))


def calibrate_mixtral() -> None:
    """Measures the Mixtral columns anew."""
    model = model_shape(geometry(MIXTRAL))
    if REAL.exists():
        real = hit_rates([request.routed for request in read_jsonl(REAL, model)])
    else:
        print(f"{REAL.name} is not there: the real column is the committed one")
        real = json.loads(RESULTS.read_text(encoding="utf-8"))["real"]
    mean, sd = synthetic_rates()
    columns = {"real": real, "synthetic": mean, "synthetic_sd": sd, "shipped": shipped_rates()}
    results = {column: {name: round(rate, 3) for name, rate in rates.items()} for column, rates in columns.items()}
    what = "hit rates in percent by policy/window in tokens/slots of 256; synthetic: mean and sd over seeds"
    write_results(RESULTS, {"what": what, "lengths": LENGTHS, "seeds": SEEDS, **results})
    print(table(results))


def write_results(path: Path, results: dict[str, object]) -> None:
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as file:
        json.dump(results, file, indent=1)
        file.write("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=(MIXTRAL, *PUBLISHED), help="only this one (default: all)")
    parser.add_argument("--derive", action="store_true", help="rewrite the statistics from the real routing, and stop")
    options = parser.parse_args()
    if options.derive:
        with atomic_write(STATISTICS) as file:
            file.write(statistics_text(derived_statistics(model_shape(geometry(MIXTRAL)))))
        return
    if options.model in (None, MIXTRAL):
        calibrate_mixtral()
    if options.model != MIXTRAL:
        calibrate_models(PUBLISHED if options.model is None else [options.model])


def statistics_text(statistics: RoutingStatistics) -> str:
    """JSON with one line per list of numbers."""
    fields = asdict(statistics)
    rows = ",\n  ".join(json.dumps(row) for row in fields["popularity"])
    parts = [f'"{name}": {json.dumps(value)}' for name, value in fields.items() if name != "popularity"]
    parts.insert(2, f'"popularity": [\n  {rows}\n ]')
    return "{\n " + ",\n ".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
