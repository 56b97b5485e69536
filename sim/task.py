"""One policy to replay, in this process or another."""

from __future__ import annotations

from typing import IO, Literal, NamedTuple

from sim.runner import Runner
from spmoe.drive.dispatcher import Observer
from spmoe.policy.recipe import Recipe
from spmoe.progress import Progress
from spmoe.results.lengths import LengthFold
from spmoe.results.metrics import Metrics
from spmoe.results.timeline import TimelineWriter
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.log import LogWriter


class Task(NamedTuple):
    """A policy to run, with the cutoff asked for."""

    runner: Runner
    recipe: Recipe
    cutoff: int | Literal["best"] | None


class Outcome(NamedTuple):
    """What came of a task, and the configuration it ran with.

    `lengths` is how many tokens each step drafted, where the policy chose that.
    """

    policy: str
    config: SchedulerConfig
    metrics: Metrics
    lengths: tuple[int, ...] | None


def run_task(
    task: Task,
    progress: Progress | None = None,
    spans: TimelineWriter | None = None,
    log: IO[str] | None = None,
) -> Outcome:
    """Replay the trace under one policy; `spans` and `log` take its timeline and its decisions."""
    runner, one, cutoff = task
    layers = None
    if one.has_cutoff:
        layers = runner.best_cutoff(one, progress) if cutoff == "best" else cutoff
    config = runner.setting.configure(one, layers)[0]
    observers: list[Observer] = []
    writer = LogWriter(log, config) if log is not None else None
    if writer is not None:
        observers.append(writer.observe)
    if spans is not None:
        observers.append(spans.run(one.name, config.experts).observe)
    lengths = LengthFold() if config.chooses else None
    if lengths is not None:
        observers.append(lengths.observe)
    metrics = runner.run(one, config, observers, progress)
    if writer is not None:
        writer.close()
    return Outcome(one.name, config, metrics, None if lengths is None else lengths.result())
