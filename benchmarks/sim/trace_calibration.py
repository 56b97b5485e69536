"""How well synthetic routing agrees with the real routing it is calibrated to, and with published figures.

    python -m benchmarks.sim.trace_calibration [--model NAME] [--recording FILE [--derive]]

For mixtral-8x7b: prints, for LRU and MIN, windows of 1, 5 and 17 tokens and caches of 25, 50 and 75 % of all experts,
the hit rates (1 - loads / needs, cold start counted) of real Mixtral-8x7B routing, of synthetic requests of the same
lengths (mean over seeds) and of the shipped trace's token lines; to benchmarks/results/trace_calibration.json.

For every other model with published locality: the published figures beside those of synthetic requests (mean over
seeds, warm cache); to benchmarks/results/trace_calibration_models.json.  Without --model: all of them.

The real routing is not in the repository: its column is recomputed with `--recording FILE` (docs/validation.md), and
kept from the committed file otherwise.  `--derive` writes anew the statistics that the generator reads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.files import RESULTS as FOLDER
from benchmarks.files import ROOT, read_json, write_json
from benchmarks.sim.cache_loads import Row, global_lru, lru_loads, min_loads, visits
from benchmarks.sim.published_locality import BUDGETS, PUBLISHED, published_figures
from spmoe.files import atomic_write
from spmoe.machine.geometry import Geometry, geometry
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import ONE, ModelShape, TokenLine
from spmoe.trace.synthetic import model_shape
from spmoe.trace.synthetic_models import model_statistics
from spmoe.trace.synthetic_routing import SyntheticRouting
from spmoe.trace.synthetic_statistics import RoutingStatistics, measure_statistics, mixtral_statistics
from spmoe.trace.vllm import read_jsonl

TRACE = ROOT / "traces" / "mixtral.jsonl"
STATISTICS = ROOT / "spmoe" / "trace" / "synthetic_mixtral.json"
RESULTS = FOLDER / "trace_calibration.json"
MODEL_RESULTS = FOLDER / "trace_calibration_models.json"

MIXTRAL = "mixtral-8x7b"
WINDOWS = (1, 5, 17)  # tokens
SLOTS = (64, 128, 192)  # of 256
POLICIES = ("lru", "min")
LENGTHS = (83, 255)  # the real requests
SEEDS = 20
WARM_LENGTHS = (500, 500, 500)  # requests; the first only warms the cache
SAMPLED_LAYERS = 8  # measured one by one; all layers of these models have the same statistics


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


def derived_statistics(recording: Path, model: ModelShape) -> RoutingStatistics:
    """The statistics of the real routing, with the committed fit."""
    committed = mixtral_statistics()
    requests = []
    for request in read_jsonl(recording, model):
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
    figures["global-lru/0.25"] = global_lru([rows.tolist()], model.layers, model.experts, warm)
    return figures


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
    results = read_json(MODEL_RESULTS)["models"] if MODEL_RESULTS.exists() else {}
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
            columns["shipped"] = {
                "global-lru/0.25": global_lru(shipped_requests(shipped), model.layers, model.experts, 0)
            }
        results[name] = {
            column: {figure: round(value, 2) for figure, value in figures.items()}
            for column, figures in columns.items()
        }
    results = {name: results[name] for name in PUBLISHED if name in results}
    what = "percent; lru, min: hit rates with one cache per layer, by its share of the experts; synthetic: over seeds, "
    what += "warm; shipped: token lines, cold start counted"
    write_json(MODEL_RESULTS, {"what": what, "lengths": WARM_LENGTHS, "seeds": SEEDS, "models": results})
    print(model_table(results))


def calibrate_mixtral(recording: Path | None) -> None:
    """Measures the Mixtral columns anew."""
    model = model_shape(geometry(MIXTRAL))
    if recording:
        real = hit_rates([request.routed for request in read_jsonl(recording, model)])
    else:
        print("no --recording: the real column is the committed one")
        real = read_json(RESULTS)["real"]
    mean, sd = synthetic_rates()
    columns = {"real": real, "synthetic": mean, "synthetic_sd": sd, "shipped": shipped_rates()}
    results = {column: {name: round(rate, 3) for name, rate in rates.items()} for column, rates in columns.items()}
    what = "hit rates in percent by policy/window in tokens/slots of 256; synthetic: mean and sd over seeds"
    write_json(RESULTS, {"what": what, "lengths": LENGTHS, "seeds": SEEDS, **results})
    print(table(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=(MIXTRAL, *PUBLISHED), help="only this one (default: all)")
    parser.add_argument(
        "--recording", type=Path, metavar="FILE", help="real routing of Mixtral-8x7B, one request a line"
    )
    parser.add_argument("--derive", action="store_true", help="rewrite the statistics from the real routing, and stop")
    options = parser.parse_args()
    if options.derive and not options.recording:
        parser.error("--derive needs --recording")
    if options.derive:
        with atomic_write(STATISTICS) as file:
            file.write(statistics_text(derived_statistics(options.recording, model_shape(geometry(MIXTRAL)))))
        return
    if options.model in (None, MIXTRAL):
        calibrate_mixtral(options.recording)
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
