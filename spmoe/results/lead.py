"""How early forecasts come: from when one is reported until the verifier's router has spoken for its layer.

Counted over decode: a prompt is read without a draft.  A report without any expert in it is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import NamedTuple

from spmoe.policy.parts.future import Future
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.log import verify_log
from spmoe.state.commands import Command, Speculate, Submit
from spmoe.state.events import (
    BatchArrived,
    DraftPredicted,
    Event,
    GatePredicted,
    LayerDone,
    LayerReached,
    PrefillBegun,
    StepBegun,
)


class Lead(NamedTuple):
    """Reports, how long before they were needed they came, summed, and how long the GPU waited in that time (ns)."""

    reports: int = 0
    total_ns: int = 0
    waited_ns: int = 0

    @property
    def mean_ns(self) -> float:
        """Of a report."""
        return self.total_ns / self.reports

    @property
    def busy_ns(self) -> float:
        """The same without waits: what it would be if whatever is needed were there."""
        return (self.total_ns - self.waited_ns) / self.reports

    def plus(self, other: Lead) -> Lead:
        """Both together."""
        return Lead(*map(add, self, other))


@dataclass(frozen=True, slots=True)
class LayerLead:
    """The reports for one layer; there is at least one.

    `by_token` has those of the draft by the number of the drafted token; `last` are the last ones of each step, which
    come latest.  The next layer's gate reports once for all tokens of a window, and so has a single entry.
    """

    by_token: tuple[Lead, ...]
    last: Lead

    @property
    def every(self) -> Lead:
        """All reports."""
        return reduce(Lead.plus, self.by_token)


@dataclass(frozen=True, slots=True)
class LeadTimes:
    """Of a run, by source ("draft", "next_gate") and layer; layers that nothing was reported for are not there.

    `steps` are those that drafted at least one token, `asked` those of them in which the draft was asked for forecasts.
    `load_ns` is the mean time that the link took per expert, None where nothing was moved.
    """

    sources: Mapping[str, Mapping[int, LayerLead]]
    steps: int
    asked: int
    load_ns: float | None


class LeadFold:
    """Watches a run; `result()` tells the lead times so far."""

    def __init__(self) -> None:
        self._decoding = False
        self._waiting: dict[tuple[str, int], list[tuple[int, int]]] = {}
        """Of the step under way, by source and layer: token and time of each report."""
        self._waits: list[tuple[int, int]] = []
        """Of the pass under way, one after the other: from when to when."""
        self._reached_at = 0
        self._by_token: dict[tuple[str, int], dict[int, Lead]] = {}
        self._last: dict[tuple[str, int], Lead] = {}
        self._steps = self._asked = 0
        self._batches: dict[int, int] = {}
        """Loads of those submitted."""
        self._loads = self._link_ns = 0

    def observe(self, event: Event, commands: tuple[Command, ...]) -> None:
        """Take in an event and what the scheduler answered."""
        if isinstance(event, LayerReached):
            self._reached_at = event.time
        elif isinstance(event, LayerDone):
            # Only now all waits are known: some come before attention, and so before the layer is reached.
            self._waits += event.waits
            if self._decoding:
                self._settle("draft", event.layer)
                self._settle("next_gate", event.layer)
        elif isinstance(event, DraftPredicted):
            for layer, forecast in enumerate(event.forecasts, event.layer):
                if forecast:
                    self._waiting.setdefault(("draft", layer), []).append((event.token, event.time))
        elif isinstance(event, GatePredicted):
            if any(event.forecasts):
                self._waiting["next_gate", event.layer] = [(0, event.time)]
        elif isinstance(event, StepBegun | PrefillBegun):
            self._decoding = isinstance(event, StepBegun)
            self._waiting.clear()
            self._waits.clear()
        elif isinstance(event, BatchArrived):
            self._loads += self._batches.pop(event.batch)
            self._link_ns += event.ended - event.started
        for command in commands:
            if isinstance(command, Submit):
                self._batches[command.batch] = len(command.loads)
            elif isinstance(command, Speculate) and command.gamma:
                self._steps += 1
                self._asked += command.layers > 0

    def result(self) -> LeadTimes:
        """The lead times so far."""
        sources: dict[str, dict[int, LayerLead]] = {}
        for source, layer in sorted(self._by_token):
            by_token = self._by_token[source, layer]
            sources.setdefault(source, {})[layer] = LayerLead(
                tuple(by_token.get(token, Lead()) for token in range(max(by_token) + 1)), self._last[source, layer]
            )
        load_ns = self._link_ns / self._loads if self._loads else None
        return LeadTimes(sources, self._steps, self._asked, load_ns)

    def _settle(self, source: str, layer: int) -> None:
        at = source, layer
        reports = self._waiting.pop(at, None)
        if reports is None:
            return
        by_token = self._by_token.setdefault(at, {})
        for token, time in reports:
            lead = Lead(1, self._reached_at - time, self._waited_since(time))
            by_token[token] = by_token.get(token, Lead()).plus(lead)
        self._last[at] = self._last.get(at, Lead()).plus(lead)

    def _waited_since(self, time: int) -> int:
        """Waits from then until the open layer was reached."""
        waited = 0
        for start, end in reversed(self._waits):
            if end <= time:
                break
            waited += max(0, min(end, self._reached_at) - max(start, time))
        return waited


def read_lead(path: str | Path, future: Callable[[SchedulerConfig], Future] | None = None) -> LeadTimes:
    """The lead times of the run behind a decision log.

    The times are those that the driver told: measured ones, where the engine ran in real time.  The log is verified on
    the way; see `spmoe.scheduler.log.verify_log`, also for `future` and for what is raised.
    """
    fold = LeadFold()
    verify_log(path, future, (fold.observe,))
    return fold.result()
