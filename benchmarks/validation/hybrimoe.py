"""Check 2: hit rates of LRU on the real routing."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from benchmarks.markdown import table, verdict
from benchmarks.validation.inputs import CONFIG, real_trace
from sim import replay
from spmoe.trace.schema import TokenLine, TraceInMemory

SETTINGS = CONFIG["hybrimoe"]


def run(data: Path) -> dict[str, Any]:
    """Hit rates for one cache of all layers and for one per layer, in both orders of touching."""
    trace = real_trace(data)
    rows = []
    for share, published in SETTINGS["published"].items():
        slots = int(float(share) * trace.header.model.layers * trace.header.model.experts)
        ours = {
            "global, residents first": hit_rate(trace, slots, per_layer=False, residents_first=True),
            "global, routing order": hit_rate(trace, slots, per_layer=False, residents_first=False),
            "per layer, residents first": hit_rate(trace, slots, per_layer=True, residents_first=True),
            "per layer, routing order": hit_rate(trace, slots, per_layer=True, residents_first=False),
        }
        simulated = replay(trace, [SETTINGS["reference_policy"]], slots=slots, gamma=0).results[0].metrics.hit_rate
        assert simulated == ours["global, residents first"], "two counts of the same thing"
        rows.append({"cache": share, "published": published, "ours": ours})
    judged = next(row for row in rows if row["cache"] == SETTINGS["judged"])
    return {"rows": rows, "error_points": 100 * (judged["ours"]["global, residents first"] - judged["published"])}


def hit_rate(trace: TraceInMemory, slots: int, *, per_layer: bool, residents_first: bool) -> float:
    """Share of needs found in an LRU cache that starts empty and holds `slots` experts, one token at a time.

    A layer's needs are touched in routing order, with `residents_first` those found before those missed; what the layer
    needs does not leave while it computes.
    """
    layers = trace.header.model.layers
    caches: list[OrderedDict[tuple[int, int], None]] = [OrderedDict() for _ in range(layers if per_layer else 1)]
    size = slots // layers if per_layer else slots
    hits = needs = 0
    for line in trace:
        assert isinstance(line, TokenLine)
        for layer, cell in enumerate(line.routed):
            cache = caches[layer if per_layer else 0]
            keys = [(layer, expert) for expert in cell]
            found = [key for key in keys if key in cache]
            hits, needs = hits + len(found), needs + len(keys)
            missed = [key for key in keys if key not in found]
            for key in found + missed if residents_first else keys:
                cache[key] = None
                cache.move_to_end(key)
            while len(cache) > size:
                cache.popitem(last=False)
    return hits / needs


def summary(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What was checked, by which criterion, what came of it, and the verdict."""
    points = SETTINGS["within_points"]
    return [
        (
            "LRU hit rate on Mixtral at 75 % cache",
            f"within {points} points of {SETTINGS['published'][SETTINGS['judged']]:.1%}",
            f"{found['error_points']:+.1f} points",
            verdict(abs(found["error_points"]) <= points),
        )
    ]


def section(found: dict[str, Any]) -> str:
    """The section of the page, without its heading."""
    names = list(found["rows"][0]["ours"])
    rows = (
        (
            f"{float(one['cache']):.0%}",
            f"{one['published']:.1%}",
            *(f"{one['ours'][name]:.1%} ({100 * (one['ours'][name] - one['published']):+.1f})" for name in names),
        )
        for one in found["rows"]
    )
    return (
        "Share of needs found in the cache on the real routing, one token at a time, cache empty at the start (in "
        "brackets: points off).  *Residents first* touches those found before those missed, as they compute; *routing "
        "order* by rank.  Judged is one cache for all layers, residents first, at 75 %; the rest is shown.\n\n"
        + table(("cache", "published", *names), rows)
    )
