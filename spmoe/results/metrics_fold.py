"""Folds the metrics of a run from the events and commands that pass the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from spmoe.results.metrics import Metrics
from spmoe.state.commands import Command, LayerPlan, Purpose, Submit
from spmoe.state.events import (
    BatchArrived,
    Event,
    HostComputed,
    LayerDone,
    LayerReached,
    PrefillBegun,
    PrefillEnded,
    RequestBegun,
    StepBegun,
    StepEnded,
    TokenDrafted,
)

_PREFETCH: Final = Purpose.PREFETCH
_PRELOAD: Final = Purpose.PRELOAD

Span = tuple[int, int]
"""From when to when, in ns."""


class MetricsFold:
    """Watches a run; `result()` tells the totals so far."""

    def __init__(self, experts: int) -> None:
        """`experts` per layer."""
        self._experts = experts
        self._events = self._requests = self._steps = self._tokens = 0
        self._decode_ns = self._verify_ns = self._stall_ns = self._link_ns = self._prefill_ns = self._prefills = 0
        self._hits = self._late = self._misses = self._loads = self._host = self._host_ns = 0
        self._prefetched = self._prefetched_used = self._cold = self._cold_prefetched = 0
        self._pending: list[tuple[Event, tuple[Command, ...]]] = []
        self._resident: set[int] = set()
        self._at_step: frozenset[int] = frozenset()
        self._batches: dict[int, Submit] = {}
        self._wanted: set[int] = set()
        """Prefetched, not evicted since."""
        self._unused: set[int] = set()
        """Of those, not needed since."""
        self._in_prefill = self._verifying = False
        self._mark = self._request_at = self._drafted_at = 0
        self._moved: list[Span] = []
        """Transfers told of since the last step ended."""
        self._decoded: list[Span] = []
        """Decode time of steps that are over, in which transfers not told of yet may have been under way."""
        self._hosted: list[Span] = []
        """When the CPU computed for the open layer."""
        self._watched: dict[type[Event], Callable[..., None]] = {
            RequestBegun: self._request_begun,
            PrefillBegun: self._prefill_begun,
            PrefillEnded: self._prefill_ended,
            StepBegun: self._step_begun,
            TokenDrafted: self._token_drafted,
            StepEnded: self._step_ended,
            LayerReached: self._layer_reached,
            LayerDone: self._layer_done,
            HostComputed: self._host_computed,
            BatchArrived: self._batch_arrived,
        }

    def observe(self, event: Event, commands: tuple[Command, ...]) -> None:
        """Take in an event and what the scheduler answered."""
        self._pending.append((event, commands))
        if type(event) is StepEnded:
            self._fold()

    def _fold(self) -> None:
        """Work off what was observed: a step at a time, since one tight loop is faster than a call between others."""
        watched = self._watched
        for event, commands in self._pending:
            watch = watched.get(type(event))
            if watch is not None:
                watch(event, commands)
            for command in commands:
                if type(command) is Submit:
                    self._submitted(command)
        self._events += len(self._pending)
        self._pending.clear()

    def result(self) -> Metrics:
        """The totals so far."""
        self._fold()
        return Metrics(
            events=self._events,
            requests=self._requests,
            steps=self._steps,
            tokens=self._tokens,
            decode_ns=self._decode_ns,
            compute_ns=self._verify_ns - self._stall_ns,
            stall_ns=self._stall_ns,
            link_busy_ns=self._link_ns,
            prefill_ns=self._prefill_ns,
            prefills=self._prefills,
            hits=self._hits,
            late=self._late,
            misses=self._misses,
            loads=self._loads,
            host_computed=self._host,
            host_busy_ns=self._host_ns,
            prefetched=self._prefetched,
            prefetched_used=self._prefetched_used,
            cold_needs=self._cold,
            cold_needs_prefetched=self._cold_prefetched,
        )

    def _request_begun(self, event: RequestBegun, commands: tuple[Command, ...]) -> None:
        self._requests += 1
        self._mark = self._request_at = event.time

    def _prefill_begun(self, event: PrefillBegun, commands: tuple[Command, ...]) -> None:
        self._in_prefill = True

    def _prefill_ended(self, event: PrefillEnded, commands: tuple[Command, ...]) -> None:
        self._in_prefill = False
        self._mark = event.time
        self._prefills += 1
        self._prefill_ns += event.time - self._request_at

    def _step_begun(self, event: StepBegun, commands: tuple[Command, ...]) -> None:
        self._at_step = frozenset(self._resident)
        self._drafted_at = event.time
        self._verifying = False

    def _token_drafted(self, event: TokenDrafted, commands: tuple[Command, ...]) -> None:
        if not self._verifying:  # What is drafted past the window hides in stalls.
            self._drafted_at = event.time

    def _step_ended(self, event: StepEnded, commands: tuple[Command, ...]) -> None:
        self._steps += 1
        self._tokens += event.accepted + 1
        self._decode_ns += event.time - self._mark
        self._verify_ns += event.time - self._drafted_at
        decoded = (self._mark, event.time)
        self._link_ns += _overlap(decoded, self._moved)
        self._moved.clear()
        if self._batches:
            self._decoded.append(decoded)
        else:
            self._decoded.clear()
        self._mark = event.time

    def _layer_reached(self, event: LayerReached, commands: tuple[Command, ...]) -> None:
        self._verifying = True
        plan = commands[-1]
        assert type(plan) is LayerPlan
        first = event.layer * self._experts
        if self._unused:
            for expert in event.experts:
                if first + expert in self._unused:
                    self._unused.remove(first + expert)
                    self._prefetched_used += 1
        if self._in_prefill:
            return
        self._hits += len(plan.hits)
        self._late += len(plan.late)
        self._misses += len(plan.misses)
        at_step, wanted = self._at_step, self._wanted
        for expert in event.experts:
            key = first + expert
            if key not in at_step:
                self._cold += 1
                self._cold_prefetched += key in wanted

    def _layer_done(self, event: LayerDone, commands: tuple[Command, ...]) -> None:
        if not self._in_prefill:
            for start, end in event.waits:
                self._stall_ns += end - start
                if self._hosted:
                    self._stall_ns -= _overlap((start, end), self._hosted)
        self._hosted.clear()

    def _host_computed(self, event: HostComputed, commands: tuple[Command, ...]) -> None:
        self._hosted.append((event.started, event.ended))
        if not self._in_prefill:
            self._host += 1
            self._host_ns += event.ended - event.started

    def _batch_arrived(self, event: BatchArrived, commands: tuple[Command, ...]) -> None:
        for key, _, _ in self._batches.pop(event.batch).loads:
            self._resident.add(key)
        # A transfer may begin or end in a prompt, or end after the last step: only its share of decode time counts.
        moved = (event.started, event.ended)
        if self._decoded:
            self._link_ns += _overlap(moved, self._decoded)
            # The next transfer begins when this one ended, or later; told late, it too may lie in steps that are over.
            self._decoded = [span for span in self._decoded if span[1] > event.ended]
        self._moved.append(moved)

    def _submitted(self, submit: Submit) -> None:
        if submit.attempt > 1:
            return
        self._batches[submit.batch] = submit
        if not self._in_prefill or submit.purpose is _PRELOAD:
            self._loads += len(submit.loads)
        prefetch = submit.purpose is _PREFETCH
        for key, _, evicted in submit.loads:
            if evicted is not None:
                self._resident.discard(evicted)
                self._wanted.discard(evicted)
                self._unused.discard(evicted)
            if prefetch:
                self._wanted.add(key)
                self._unused.add(key)
                self._prefetched += 1


def _overlap(span: Span, others: list[Span]) -> int:
    """How much of `span` the others cover; they do not overlap each other."""
    start, end = span
    covered = 0
    for other_start, other_end in others:
        shared = (end if other_end > end else other_end) - (start if other_start < start else other_start)
        if shared > 0:
            covered += shared
    return covered
