"""What the simulator says of runs that the engine has timed, against what they took."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from sim.runner import Runner
from spmoe.errors import InputError
from spmoe.policy.parts.future import Future
from spmoe.policy.registry import recipe
from spmoe.progress import Progress
from spmoe.results.run import Measured, Run, fingerprint, log_path, read_run
from spmoe.results.timeline import TimelineWriter
from spmoe.run.options import RunOptions
from spmoe.run.setting import resolve_setting
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.log import read_config, verify_log
from spmoe.trace.excerpt import excerpt
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import TraceInMemory
from spmoe.trace.windows import requests

MEDIAN_ERROR: Final = 0.05
MAX_ERROR: Final = 0.12
KENDALL_TAU: Final = 0.9
"""What is asked of the simulator: the first two, or twice and three times the spread from run to run where that is
more; and at least the third."""
TRACES: Final = Path("traces")
"""Where a trace is looked for besides beside the run file."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One policy of a run: TPOT in ms, predicted and measured, and the spread of the latter (a share of it)."""

    run: str
    policy: str
    predicted_tpot_ms: float
    measured_tpot_ms: float
    spread: float

    @property
    def error(self) -> float:
        """By which share the prediction is too high, or, below 0, too low."""
        return self.predicted_tpot_ms / self.measured_tpot_ms - 1

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "policy": self.policy,
            "predicted_tpot_ms": self.predicted_tpot_ms,
            "measured_tpot_ms": self.measured_tpot_ms,
            "spread": self.spread,
            "error": self.error,
        }


class Pair(NamedTuple):
    """Two policies of a run, and whether both are predicted in the order in which they were measured."""

    faster: Compared
    slower: Compared
    agreed: bool


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What was compared, run after run."""

    policies: tuple[Compared, ...]

    @property
    def median_error(self) -> float:
        """Of the errors' sizes, whichever way they go."""
        return median(abs(each.error) for each in self.policies)

    @property
    def max_error(self) -> float:
        return max(abs(each.error) for each in self.policies)

    @property
    def worst(self) -> Compared:
        """That with the largest error."""
        return max(self.policies, key=lambda each: abs(each.error))

    @property
    def kendall_tau(self) -> float | None:
        """How alike both rank the policies of a run: 1 for all pairs, -1 for none, pairs of all runs together.

        Pairs that lie within the spread of what was measured do not count; None where none is left.
        """
        agreed = [1 if each.agreed else -1 for each in self.pairs()]
        return sum(agreed) / len(agreed) if agreed else None

    @property
    def beyond(self) -> tuple[Compared, ...]:
        """Policies whose error is more than any should have."""
        return tuple(each for each in self.policies if abs(each.error) > max(MAX_ERROR, 3 * each.spread))

    @property
    def on_target(self) -> bool:
        """Whether all is as is asked for."""
        spread = median(each.spread for each in self.policies)
        tau = self.kendall_tau
        return (
            self.median_error <= max(MEDIAN_ERROR, 2 * spread)
            and not self.beyond
            and (tau is None or tau >= KENDALL_TAU)
        )

    def runs(self) -> Iterator[Fidelity]:
        """The same of each run by itself."""
        for run in dict.fromkeys(each.run for each in self.policies):
            yield Fidelity(tuple(each for each in self.policies if each.run == run))

    def pairs(self) -> Iterator[Pair]:
        """Those of each run that differ by more than the spread of what was measured."""
        for run in self.runs():
            for one, other in combinations(run.policies, 2):
                apart = one.measured_tpot_ms - other.measured_tpot_ms
                if abs(apart) > max(each.spread * each.measured_tpot_ms for each in (one, other)):
                    predicted = one.predicted_tpot_ms - other.predicted_tpot_ms
                    yield Pair(*((one, other) if apart < 0 else (other, one)), agreed=predicted * apart > 0)

    def to_json(self) -> dict[str, Any]:
        """All of it; the same inputs give the same bytes."""
        return {
            "policies": [each.to_json() for each in self.policies],
            **self._summary(),
            "runs": [{"run": each.policies[0].run, **each._summary()} for each in self.runs()],
        }

    def _summary(self) -> dict[str, Any]:
        return {
            "median_error": self.median_error,
            "max_error": self.max_error,
            "kendall_tau": self.kendall_tau,
            "on_target": self.on_target,
        }


def fidelity(
    runs: Iterable[str | Path],
    trace: str | Path | None = None,
    *,
    timeline: TimelineWriter | None = None,
    logs: Path | None = None,
    progress: Progress | None = None,
) -> Fidelity:
    """Simulates what the run files `runs` tell of and compares.

    The trace of each is `trace`, or else looked for by its name beside the run file and in `traces`.  `timeline` takes
    the policies of a single run, predicted and, from the decision logs in the folder `logs`, measured.

    Raises InputError for files that cannot be read, are not what they should be, or do not belong together.
    """
    files = [Path(each) for each in runs]
    if timeline is not None and (len(files) > 1 or logs is None):
        raise InputError("timeline: expected a single run file, and the folder with its logs")
    compared: list[Compared] = []
    for file in files:
        run = read_run(file)
        if timeline is not None and logs is not None:
            _check_logs(run, logs)
        compared += _compare(run, file, _lines(run, file, trace), timeline, logs, progress)
    if not compared:
        raise InputError("runs: expected at least one run file")
    return Fidelity(tuple(compared))


def _compare(
    run: Run,
    file: Path,
    trace: TraceInMemory,
    timeline: TimelineWriter | None,
    logs: Path | None,
    progress: Progress | None,
) -> Iterator[Compared]:
    setting = resolve_setting(
        trace.header,
        run.longest_request,
        RunOptions(hardware=run.hardware, bits=run.bits, slots=run.slots, gamma=run.gamma),
    )
    runner = Runner(trace, setting)
    for each in run.policies:
        observers = []
        if timeline is not None and logs is not None:
            _replay_log(each, logs, trace, timeline)
            observers.append(timeline.run(f"{each.policy}, predicted", each.config.experts).observe)
        metrics = runner.run(recipe(each.policy), each.config, observers)
        assert metrics.tpot_ms is not None
        yield Compared(file.name, each.policy, metrics.tpot_ms, each.tpot_ms, each.spread)
        if progress is not None:
            progress(each.policy, 1)


def _lines(run: Run, file: Path, given: str | Path | None) -> TraceInMemory:
    """What was run: the very lines."""
    name = run.trace.name
    if given is None:
        places = [folder / name for folder in (file.parent, TRACES) if Path(name).name == name]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise InputError(f"{file}: trace {name} is neither beside it nor in {TRACES}; expected --trace FILE")
    else:
        path = Path(given)
    if (found := fingerprint(path)) != run.trace.sha256:
        raise InputError(f"{path}: expected the trace of {file}, SHA-256 {run.trace.sha256[:16]}, got {found[:16]}")
    return excerpt(TraceFile(path), run.trace.tokens, run.model, run.draft)


def _check_logs(run: Run, logs: Path) -> None:
    """Each is there and of the run: better known now than after the first have been drawn."""
    for each in run.policies:
        path = log_path(logs, each.policy)
        if read_config(path) != each.config:
            raise InputError(f"{path}: expected a log of the run, whose scheduler was set up with other figures")


def _replay_log(measured: Measured, logs: Path, trace: TraceInMemory, timeline: TimelineWriter) -> None:
    """Draws what a log tells, which has to hold."""

    def future(config: SchedulerConfig) -> Future:
        return Future(lambda: requests(trace), config.gamma)

    spans = timeline.run(f"{measured.policy}, measured", measured.config.experts)
    known = "future" in recipe(measured.policy).needs
    verify_log(log_path(logs, measured.policy), future if known else None, [spans.observe])
