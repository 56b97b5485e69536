"""Check 5: the times of one layer's two experts on the machine of the rtx-4090 profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.markdown import table, verdict
from benchmarks.validation.inputs import CONFIG, real_trace
from sim import replay
from spmoe.machine.cost import CostModel
from spmoe.machine.geometry import geometry
from spmoe.machine.hardware import load_hardware

SETTINGS = CONFIG["machine"]


def run(data: Path) -> dict[str, Any]:
    """Two loads, two experts on the CPU, two on the GPU; then a whole run with misses on the CPU."""
    cost = CostModel(geometry("mixtral-8x7b"), load_hardware(SETTINGS["hardware"]), 16, None)
    ours = {
        "fetch": 2 * cost.load_ns() / 1e6,
        "cpu": 2 * cost.host_expert_ns(1) / 1e6,
        "gpu": 2 * cost.expert_ns(1) / 1e6,
    }
    found = replay(
        real_trace(data),
        SETTINGS["cached_policy"],
        SETTINGS["hardware"],
        bits=16,
        slots=SETTINGS["cached_slots"],
        gamma=4,
    )
    tpot = found.results[0].metrics.tpot_ms
    assert tpot is not None
    return {
        "rows": [
            {"item": item, "published_ms": published, "ours_ms": ours[item], "input": item in SETTINGS["inputs"]}
            for item, published in SETTINGS["published_ms"].items()
        ],
        "cached": {"published": SETTINGS["cached_tokens_per_s"], "ours": 1000 / tpot},
    }


def summary(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What was checked, by which criterion, what came of it, and the verdict."""
    rows = [row for row in found["rows"] if not row["input"]]
    inside = [abs(row["ours_ms"] / row["published_ms"] - 1) <= SETTINGS["within"] for row in rows]
    return [
        (
            "times of one layer's two experts",
            f"within {SETTINGS['within']:.0%}",
            f"{sum(inside)} of {len(inside)}",
            verdict(all(inside)),
        )
    ]


def section(found: dict[str, Any]) -> str:
    """The section of the page, without its heading."""
    within = SETTINGS["within"]
    rows = table(
        ("two experts of one layer", "published ms", "ours ms", "error", ""),
        (
            (
                {"fetch": "fetched", "cpu": "on the CPU, 24 threads", "gpu": "on the GPU"}[one["item"]],
                one["published_ms"],
                f"{one['ours_ms']:.2f}",
                f"{one['ours_ms'] / one['published_ms'] - 1:+.0%}",
                "input of the profile"
                if one["input"]
                else verdict(abs(one["ours_ms"] / one["published_ms"] - 1) <= within),
            )
            for one in found["rows"]
        ),
    )
    cached = found["cached"]
    return (
        f"{rows}\nThe same paper reports up to {cached['published']} tokens/s with about "
        f"{SETTINGS['cached_slots']} experts on the GPU and misses on the CPU; `{SETTINGS['cached_policy']}` "
        f"on as many slots comes to {cached['ours']:.1f} ({cached['ours'] / cached['published'] - 1:+.0%}).\n"
    )
