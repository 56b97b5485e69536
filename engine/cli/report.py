"""What a run came to: in words for a terminal, and in the schema that both drivers write."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator
from typing import Any

from engine.cli.reference import Comparison
from engine.decoding.recorder import Recorder
from engine.engine import Engine
from engine.plan import Plan
from spmoe.errors import InputError
from spmoe.machine.units import format_size
from spmoe.results.bound import Bound, bound
from spmoe.results.metrics import Metrics
from spmoe.results.result import SCHEMA, Result
from spmoe.results.transfers import Transfers
from spmoe.trace.schema import ForecastOrigin, Header, Source, TraceInMemory
from spmoe.trace.windows import requests

NOTHING = "-"


def summary(
    plan: Plan, metrics: Metrics, transfers: Transfers, comparison: Comparison | None = None
) -> Iterator[tuple[str, str]]:
    """Label and text of each line."""
    setting = plan.setting
    yield "policy", f"{plan.recipe.name}: {plan.recipe.summary}"
    if differences := plan.recipe.runtime.explain():
        yield "", f"the original differs in how it runs: {'; '.join(differences)}"
    yield "model", f"{setting.geometry.name}, {_kind(plan)}"
    keys = setting.geometry.keys
    size = format_size(plan.slot_bytes)
    yield "cache", f"slots for {setting.slots:,} of {keys:,} experts ({setting.slots / keys:.0%}, {size})"
    reckoned = f"{setting.hardware.name} ({setting.hardware.kind})"
    if plan.options.virtual_time is None:
        device = ", at the host" if plan.device.type == "cuda" else ""
        yield "times", f"measured{device}; the policy reckons with the figures of {reckoned}"
    else:
        yield "times", f"virtual: the cost model's for {reckoned}; nothing was measured"
    tokens = metrics.tokens + metrics.prefills
    requests = f" for {metrics.requests:,} prompts" if metrics.requests > 1 else ""
    yield "output", f"{tokens:,} {'token' if tokens == 1 else 'tokens'}{requests}"
    if transfers.drafted:
        yield (
            "rounds",
            f"{metrics.steps:,}, each of {metrics.tokens / metrics.steps:.2f} tokens; of {transfers.drafted:,} drafted "
            f"tokens {transfers.acceptance:.1%} were accepted",
        )
    if plan.config.chooses and metrics.steps:
        drafted = transfers.drafted / metrics.steps
        yield (
            "" if transfers.drafted else "rounds",
            f"the policy chose how much to draft: {drafted:.1f} tokens per round, at most {plan.config.gamma}",
        )
    mean = " (mean)" if metrics.prefills > 1 else ""
    yield "TTFT", _number(metrics.ttft_ms, ",.1f", f" ms to the first token{mean}")
    tpot = metrics.tpot_ms
    yield "TPOT", NOTHING if not tpot else f"{tpot:,.2f} ms per further token ({1000 / tpot:,.1f} tokens/s)"
    if needs := metrics.needs:
        named = ((metrics.hits, "hits"), (metrics.late, "late"), (metrics.misses, "misses"))
        shares = ", ".join(f"{part / needs:.1%} {name}" for part, name in named)
        yield "experts", f"{needs:,} needed in decode: {shares}"
    if metrics.host_computed:
        yield "", f"{metrics.host_computed:,} of them computed on the CPU"
    if transfers.loads:
        achieved = _number(transfers.bytes_per_s, ",.2f", " GB/s", 1e9)
        yield (
            "moved",
            f"{format_size(transfers.bytes)} to the slots at {achieved}, "
            f"{_number(transfers.hidden_share, '.1%')} of it hidden behind compute",
        )
    else:
        yield "moved", "nothing"
    if metrics.tokens:
        yield (
            "decode",
            f"{metrics.loads_per_token:.2f} loads per token; of the time the link works "
            f"{_number(metrics.link_utilisation, '.1%')}, the verifier stalls {_number(metrics.stall_fraction, '.1%')}",
        )
    if comparison is not None:
        yield "plain", comparison.explain()


def show(lines: Iterator[tuple[str, str]]) -> str:
    """Lines with their labels in a column."""
    return "\n".join(f"{label:<8}{text}" for label, text in lines)


def trace_of(engine: Engine) -> TraceInMemory:
    """What `engine`, which took notes, has recorded of its requests; InputError where no token was decoded."""
    plan, recorder = engine.plan, recorder_of(engine)
    drafted = f"up to {plan.config.gamma} tokens drafted" if plan.config.chooses else f"gamma {plan.setting.gamma}"
    how = f"engine run under {plan.recipe.name}, {drafted}"
    return TraceInMemory(trace_header(plan, recorder, how), recorder)


def recorder_of(engine: Engine) -> Recorder:
    """The notes that `engine` took; RuntimeError where it took none."""
    if engine.recorder is None:
        raise RuntimeError("the engine took no notes")
    return engine.recorder


def trace_header(plan: Plan, recorder: Recorder, how: str) -> Header:
    """The header of a trace of what was recorded, and `how`; InputError where no token was decoded."""
    if not recorder.tokens:
        raise InputError("nothing to record: no token was decoded behind the first, which belongs to the prompt")
    source = Source(
        "recorded",
        _kind(plan),
        datetime.datetime.now(datetime.UTC).date().isoformat(),
        how + ("" if plan.draft else "; there was no draft: agree is false throughout"),
    )
    origins = {name: ForecastOrigin("recorded") for name in sorted(recorder.forecasts)}
    return dataclasses.replace(plan.header(source, recorder.tokens), forecasts=origins)


def document(engine: Engine, comparison: Comparison | None = None) -> dict[str, Any]:
    """The document `spmoe-result/1`, as `sim replay --json` writes it; null for what this run does not tell."""
    plan, metrics = engine.plan, engine.metrics()
    own = _bound(engine)
    virtual = plan.options.virtual_time is not None
    setting = plan.setting
    result = Result(
        plan.recipe,
        metrics,
        setting.budget.expert,
        setting.cpu_experts,
        bound_ms=own.tpot_ms if own and virtual else None,
        lengths=engine.lengths() if plan.config.chooses else None,
    )
    cutoff = {plan.recipe.name: plan.config.cutoff} if plan.recipe.has_cutoff else {}
    return {
        "schema": SCHEMA,
        "trace": {
            "name": None,
            "model": plan.setting.geometry.name,
            "source": "recorded",
            "what": _kind(plan),
            "tokens": metrics.tokens,
            "requests": metrics.requests,
            "prefills": metrics.prefills,
            "agreement": None,
            "empty_cells": 0,
            "rejected_inputs": None,
        },
        "config": {
            **plan.setting.to_json(),
            "cutoff": {"choice": "analytical" if plan.options.cutoff is None else "given", "layers": cutoff},
            "stand_ins": 0,
            "skipped": {},
            "engine": {
                "device": str(plan.device),
                "dtype": str(plan.dtype).removeprefix("torch."),
                "kernel": plan.options.kernel,
                "virtual_time": virtual,
                "link_gbps": plan.options.link_gbps,
                "fallback": plan.fallback or None,
                "acceptance": engine.transfers().acceptance,
                "hidden_share": engine.transfers().hidden_share,
                "plain": None if comparison is None else comparison.to_json(),
            },
        },
        "feasible": plan.setting.feasible,
        "bound": None
        if own is None
        else {"loads_per_token": own.loads_per_token, "tpot_ms": own.tpot_ms if virtual else None},
        "results": [result.to_json()],
    }


def _bound(engine: Engine) -> Bound | None:
    """The bound of the run's own windows, where they were recorded."""
    recorder, setting = engine.recorder, engine.plan.setting
    if recorder is None or not recorder.tokens:
        return None
    return bound(lambda: requests(recorder), setting.cost, engine.lengths(), setting.slots)


def _kind(plan: Plan) -> str:
    draft = "no draft" if plan.draft_shape is None else f"draft {plan.draft_shape.name}"
    return f"{draft}, {str(plan.dtype).removeprefix('torch.')} on {plan.device}"


def _number(value: float | None, form: str, unit: str = "", scale: float = 1) -> str:
    return NOTHING if value is None else f"{value / scale:{form}}{unit}"
