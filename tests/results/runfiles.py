"""Run files made by hand: what the engine would have measured, had it been as fast as said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spmoe.machine.hardware import load_hardware
from spmoe.policy.registry import recipe
from spmoe.results.run import Measured, Run, TraceIdentity, hardware_of
from spmoe.run.options import RunOptions
from spmoe.run.setting import resolve_setting
from spmoe.scheduler.config import configure
from spmoe.trace.reader import TraceFile
from spmoe.trace.summary import summarise
from tests.paths import PROFILES

PROFILE = PROFILES / "rtx-4090.json"
SLOTS, GAMMA, BITS = 9, 2, 16


def make_run(trace: Path, tpots: Mapping[str, Sequence[float]], tokens: int | None = None) -> Run:
    """A run over the beginning of `trace`: the TPOTs (ms) of each policy's runs."""
    file = TraceFile(trace)
    longest = summarise(file).longest_request
    hardware = load_hardware(PROFILE)
    setting = resolve_setting(file.header, longest, RunOptions(hardware=hardware, bits=BITS, slots=SLOTS, gamma=GAMMA))
    profile: dict[str, Any] = json.loads(PROFILE.read_text("utf-8"))
    assert file.header.draft is not None
    return Run(
        trace=TraceIdentity.of(trace, file.header.tokens if tokens is None else tokens),
        machine="by hand",
        model=file.header.model,
        draft=file.header.draft,
        bits=BITS,
        longest_request=longest,
        link_gbps=None,
        profile=profile,
        hardware=hardware_of(profile, "by hand"),
        policies=tuple(
            Measured(configure(recipe(name), setting.cost, SLOTS, GAMMA, longest)[0], tuple(each), 7)
            for name, each in tpots.items()
        ),
        skipped={"adapmoe": "a reason"},
    )


def write_run(path: Path, run: Run) -> Path:
    path.write_text(json.dumps(run.to_json()))
    return path
