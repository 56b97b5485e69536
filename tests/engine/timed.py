"""A profile with timings of the bundled pair, made up: everything takes its time."""

from __future__ import annotations

import json
from typing import Any, Final

from spmoe.machine.hardware import Hardware
from spmoe.policy.registry import RECIPES
from spmoe.results.run import hardware_of
from tests.paths import PROFILES

PROFILE: Final = PROFILES / "rtx-4090.json"
TIMINGS: Final[dict[str, Any]] = {
    "model": "pico-target",
    "draft": "pico-draft",
    "bits": 32,
    "layer": [{"tokens": 1, "us": 40}, {"tokens": 5, "us": 61.5}],
    "entry_us": 13,
    "expert": [{"tokens": 1, "us": 9}, {"tokens": 3, "us": 11}],
    "round": [{"tokens": 1, "us": 17}, {"tokens": 2, "us": 23}],
    "draft_token": [{"tokens": 1, "us": 103}, {"tokens": 2, "us": 149}],
    "forecast_us": 2.5,
    "landing_us": 3.5,
    "cold_us": 7.1,
    "draft_landing_us": 5.3,
    "result_us": 2.9,
    "notice_us": 4.3,
    "next_gate": [{"tokens": 1, "us": 4}, {"tokens": 5, "us": 6}],
    "gates": [{"tokens": 1, "us": 2}],
    "decisions_us": {name: 3 + number / 7 for number, name in enumerate(RECIPES)},
    "host_expert": [{"tokens": 1, "us": 31}, {"tokens": 2, "us": 37}],
    "handover_us": 12.7,
    "transfer": 1.03,
    "jitter": 1.07,
}


def timed_hardware() -> Hardware:
    """Loads take some 17 us."""
    return hardware_of({**json.loads(PROFILE.read_text("utf-8")), "timings": TIMINGS}, "made up")
