"""A geometry at its full expert size with random weights: its profile, and policies timed on a trace of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_gpu.files import profile_path, run_path, write_json
from benchmarks.on_gpu.moved import DecodeTransfers
from benchmarks.on_gpu.stages import TRACES
from benchmarks.on_gpu.worker import Task
from engine.profiling.calibration import Calibration
from engine.profiling.policy_timing import Chosen, Measurement, choose
from engine.profiling.profile import Profile
from engine.profiling.random_models import BlankPair
from spmoe.errors import InputError
from spmoe.machine.budget import memory_budget
from spmoe.machine.units import parse_size
from spmoe.policy.parts.future import Future
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import recipe
from spmoe.results.run import TraceIdentity, hardware_of
from spmoe.run.options import RunOptions
from spmoe.run.setting import Setting, resolve_setting
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.log import verify_log
from spmoe.trace.excerpt import excerpt
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import TraceInMemory
from spmoe.trace.summary import summarise
from spmoe.trace.windows import requests

GAMMA: int = 4


class BriefCalibration(Calibration):
    """A study of a single turn: of a large model a turn moves all experts a dozen times, which takes a minute."""

    _taken = False

    def steps(self) -> list[Callable[[], None]]:
        """Those of the first turn; none of later ones."""
        if self._taken:
            return []
        self._taken = True
        return super().steps()


def profile(task: Task) -> dict[str, Any]:
    """Writes the profile, and tells the most important of it."""
    study = _study(task)
    study.turn()
    study.run_decisions(("on-demand.lru",))
    path = profile_path(task.out, study.subject.model.name)
    document = Profile(study).document(path.stem.removeprefix("profile-"))
    try:
        hardware_of(document, path.name)
    except InputError:
        write_json(path.with_name(f"refused-{path.name}"), document)  # To find out why: it cannot be had again soon.
        raise
    write_json(path, document)
    timings, spread = document["timings"], document["measured"]["link"]
    return {
        "file": path.name,
        "link": document["link"],
        "compute_beside_transfers": spread["compute_beside_transfers"],
        "gpu": document["gpu"],
        "layer": timings["layer"],
        "expert": timings["expert"],
        "draft_token": timings["draft_token"],
        "host_expert": timings["host_expert"],
    }


def measure(task: Task) -> dict[str, Any]:
    """Times policies on the beginning of a trace, writes the run file, and tells what the link did."""
    settings, study = task.settings, _study(task)
    source = TRACES / settings["trace"]
    subject = study.subject
    trace = excerpt(TraceFile(source), settings["tokens"], subject.model, subject.draft)
    setting, budget = room(settings, trace, summarise(trace).longest_request)
    space = RunOptions(slots=setting.slots, gamma=GAMMA)
    chosen = sort_out(task.kept["pair"], trace, settings["policies"], space)
    measurement = Measurement(study, trace, chosen, space)
    repeated = 0
    while repeated < settings["repeats"]:
        began = time.monotonic()
        measurement.repeat()
        repeated += 1
        now = time.monotonic()
        if now + (now - began) > task.until:
            break
    run = measurement.result(TraceIdentity.of(source, trace.header.tokens), "")
    path = run_path(task.out, task.stage)
    write_json(path, run.to_json())
    found = {}
    for each in sorted(run.policies, key=lambda each: each.tpot_ms):
        moved = _moved(measurement, each.config, trace, subject.bench.layout.size)
        found[each.policy] = {
            "tpot_ms": round(each.tpot_ms, 3),
            "spread": round(each.spread, 4),
            "runs": len(each.tpots_ms),
            **moved.to_json(),
        }
    keys = subject.model.layers * subject.model.experts
    return {
        "file": path.name,
        "budget": budget,
        "slots": setting.slots,
        "of": keys,
        "tokens": trace.header.tokens,
        "bits": run.bits,
        "policies": found,
        "left_out_policies": chosen.skipped,
    }


def sort_out(pair: BlankPair, trace: TraceInMemory, policies: Sequence[str], space: RunOptions) -> Chosen:
    """Those that can be measured here; the others are left out, for a stage should not fail because of one."""
    recipes: list[Recipe] = []
    skipped = {}
    for policy in policies:
        try:
            recipes += choose(pair, trace, [policy], space).recipes
        except InputError as error:
            skipped[policy] = str(error)
    return Chosen(tuple(recipes), skipped)


def room(settings: Mapping[str, Any], trace: TraceInMemory, longest: int) -> tuple[Setting, str]:
    """How many slots there are, and in words why: what `vram` leaves, or a share `cache` of all experts.

    With `vram` the draft counts with at most `draft_bits` per weight, as who owns such a card would have it; it
    computes with as many as the model all the same.
    """
    bits = 8 * getattr(torch, settings["dtype"]).itemsize
    if "cache" in settings:
        setting = resolve_setting(trace.header, longest, RunOptions(bits=bits, cache=settings["cache"], gamma=GAMMA))
        return setting, f"{setting.slots} slots, {settings['cache']:.0%} of all experts"
    asked = resolve_setting(trace.header, longest, RunOptions(bits=bits, gamma=GAMMA, slots=1))
    assert asked.draft is not None
    draft = replace(asked.draft, max_bits=settings["draft_bits"])
    budget = memory_budget(asked.geometry, bits, draft, longest, parse_size(settings["vram"]))
    setting = resolve_setting(trace.header, longest, RunOptions(bits=bits, slots=budget.slots, gamma=GAMMA))
    return setting, f"{budget.explain()}; the draft counted at {draft.width(bits):g} bits"


def _study(task: Task) -> BriefCalibration:
    """That of the group: its models are built once."""
    if "study" not in task.kept:
        settings = task.settings
        pair = BlankPair.read(settings["target"], settings["draft"], getattr(torch, settings["dtype"]))
        host = settings["host_bytes"]
        # So many bytes of experts: a build takes a share of what it is given.
        subject = pair.build(task.device, None if host is None else host * 5 // 4)
        if (most := settings["device_bytes"]) is not None:
            subject = subject._replace(distinct=max(1, min(subject.distinct, most // pair.layout.size)))
        task.kept["pair"] = pair
        task.kept["study"] = BriefCalibration(subject, None, 0, settings["study_tokens"])
    study: BriefCalibration = task.kept["study"]
    return study


def _moved(measurement: Measurement, config: SchedulerConfig, trace: TraceInMemory, size: int) -> DecodeTransfers:
    """What the link did in the last run of a policy, whose decisions a fresh scheduler repeats."""
    moved = DecodeTransfers(size)

    def future(known: SchedulerConfig) -> Future:
        return Future(lambda: requests(trace), known.gamma)

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with open(log, "w", encoding="utf-8") as stream:
            measurement.log(config.recipe, stream)
        verify_log(log, future if "future" in recipe(config.recipe).needs else None, [moved.observe])
    return moved
