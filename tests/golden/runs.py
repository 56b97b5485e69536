"""Runs whose exact counts are kept in `counts.json`.

After a change that is meant to alter decisions or times, look at the difference and rewrite the file:

    python -m tests.golden.rewrite
"""

from __future__ import annotations

import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from sim import replay
from spmoe.trace.draws import Rates
from spmoe.trace.schema import DraftShape, ModelShape, TraceInMemory
from spmoe.trace.synthetic import RequestLength, synthetic_trace
from spmoe.trace.synthetic_routing import SyntheticRouting
from spmoe.trace.synthetic_statistics import RoutingFit, RoutingStatistics
from spmoe.trace.writer import line_text

COUNTS = Path(__file__).with_name("counts.json")

LAYERS, EXPERTS, TOP_K = 6, 8, 2
MODEL = ModelShape("golden-moe", LAYERS, EXPERTS, TOP_K, 20_000_000, dense_params=60_000_000, kv_bytes_per_token=24_576)
DRAFT = DraftShape("golden-draft", params=300_000_000, active_params=280_000_000, kv_bytes_per_token=8_192)
FIT = RoutingFit(
    vocabulary=200,
    zipf=1.0,
    repeat=0.05,
    phrase=8.0,
    popularity_weight=0.8,
    identity=0.6,
    context=1.0,
    memory=0.7,
)
SETTINGS = {f"{slots} slots, gamma {gamma}": (slots, gamma) for slots in (12, 30) for gamma in (0, 4)}
REPORTED = (
    "steps",
    "tokens",
    "loads",
    "hits",
    "late",
    "misses",
    "prefetched",
    "prefetched_used",
    "decode_ns",
    "events",
)


def golden_trace() -> TraceInMemory:
    """Three requests of a model of 6 layers with 8 experts, some more popular than others; the same every time."""
    weights = range(4, 4 + EXPERTS)
    share = [TOP_K * weight / sum(weights) for weight in weights]
    statistics = RoutingStatistics(
        source="made up for a test",
        top_k=TOP_K,
        popularity=tuple(tuple(share[layer:] + share[:layer]) for layer in range(LAYERS)),
        persistence=tuple(0.3 + 0.05 * layer for layer in range(LAYERS)),
        sharpness=(1.0,) * LAYERS,
        fit=FIT,
    )
    lengths = [RequestLength(20, 30), RequestLength(5, 17), RequestLength(40, 25)]
    rates = Rates(agreement=0.8, draft_accuracy=0.85, next_gate_accuracy=0.8)
    return TraceInMemory(*synthetic_trace(MODEL, DRAFT, SyntheticRouting(statistics), lengths, rates, seed=11))


def counts() -> dict[str, Any]:
    """What `counts.json` should hold: a digest of the trace, then the counts of every policy in every setting."""
    trace = golden_trace()
    return {"trace": digest(trace), "runs": {setting: counts_in(setting, trace) for setting in SETTINGS}}


def digest(trace: TraceInMemory) -> str:
    """Of the trace's lines."""
    return sha256("\n".join(map(line_text, trace)).encode()).hexdigest()


def counts_in(setting: str, trace: TraceInMemory) -> dict[str, dict[str, int]]:
    """The bound and the counts of every policy in one of `SETTINGS`."""
    slots, gamma = SETTINGS[setting]
    found = replay(trace, "all", "rtx-4090", slots=slots, gamma=gamma, lossy=True)
    bound = {name: getattr(found.bound, name) for name in ("loads", "link_ns", "compute_ns")}
    policies = {result.recipe.name: asdict(result.metrics) for result in found.results}
    return {"bound": bound, **{name: {key: one[key] for key in REPORTED} for name, one in policies.items()}}


def text(document: dict[str, Any]) -> str:
    """The document as the file has it: a line per policy."""
    lines = ["{", f' "trace": {json.dumps(document["trace"])},', ' "runs": {']
    runs = []
    for name, policies in document["runs"].items():
        rows = [f"   {json.dumps(policy)}: {json.dumps(values)}" for policy, values in policies.items()]
        runs.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(rows) + "\n  }")
    return "\n".join([*lines, ",\n".join(runs), " }", "}", ""])
