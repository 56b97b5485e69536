"""Replay a trace under policies on a simulated machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

from sim.pool import check_jobs
from sim.prepared import Prepared, Replay
from spmoe.errors import InputError
from spmoe.files import check_distinct
from spmoe.machine.hardware import Hardware
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import select
from spmoe.progress import Progress
from spmoe.run.options import DEFAULT_HARDWARE, RunOptions
from spmoe.trace.schema import Trace


def replay(
    trace: str | os.PathLike[str] | Trace,
    policies: str | Recipe | Sequence[str | Recipe] = "all",
    hardware: str | Hardware = DEFAULT_HARDWARE,
    *,
    cutoff: int | Literal["best"] | None = None,
    lossy: bool = False,
    jobs: int | None = 1,
    log: str | os.PathLike[str] | None = None,
    timeline: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Replay:
    """Replay `trace` (a path, or a `Trace`) under `policies`: names, patterns ("spmoe.*"), or "all"; or recipes, which
    need not be rows of the registry.

    A policy that does not apply to the trace or the machine is left out; `skipped` says why.

    `hardware` and `options` (`bits`, `vram`, `cache`, `slots`, `gamma`, `gamma_max`, `as_model`, `cpu_experts`) are the
    fields of `spmoe.run.options.RunOptions`.  `cutoff` is the number of leading layers that SP-MoE prefetches for,
    "best" for that with the lowest TPOT, None for the analytical one.  `lossy` allows policies that change the model's
    output.  `log` takes the decision log of a single policy, `timeline` a Chrome trace of all.  `jobs`: processes to
    spread the policies over (None for one per core), unless there is a log or a timeline to write; a script that uses
    more than one has to start under `if __name__ == "__main__":`.

    Raises InputError, one line, for whatever is wrong with trace or arguments, and where no policy applies.
    """
    check_distinct(trace=trace if isinstance(trace, str | os.PathLike) else None, log=log, timeline=timeline)
    jobs = check_jobs(jobs)
    if log is not None and len(select(policies)) > 1:
        raise InputError("log: expected a single policy, since a log holds the decisions of one run")
    prepared = Prepared(trace, RunOptions(hardware=hardware, **options))
    return prepared.replay(policies, cutoff, lossy, jobs, log, timeline, progress)
