"""The trace of a run, from what the engine recorded."""

from __future__ import annotations

import dataclasses
import datetime

from engine.cli.summary import describe_pair
from engine.decoding.recorder import Recorder
from engine.engine import Engine
from engine.plan import Plan
from spmoe.errors import InputError
from spmoe.trace.schema import ForecastOrigin, Header, Source, TraceInMemory


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
        describe_pair(plan),
        datetime.datetime.now(datetime.UTC).date().isoformat(),
        how + ("" if plan.draft else "; there was no draft: agree is false throughout"),
    )
    origins = {name: ForecastOrigin("recorded") for name in sorted(recorder.forecasts)}
    return dataclasses.replace(plan.header(source, recorder.tokens), forecasts=origins)
