"""Chrome traces (open them at ui.perfetto.dev) with rows for draft, GPU, CPU, link and waits, from either driver."""

from __future__ import annotations

import json
from typing import IO, Any

from spmoe.state.commands import Command, Submit
from spmoe.state.events import (
    BatchArrived,
    Event,
    HostComputed,
    LayerDone,
    LayerReached,
    PrefillBegun,
    StepBegun,
    TokenDrafted,
)

ROWS = ("draft", "GPU", "CPU", "link", "wait")


class TimelineWriter:
    """Writes spans of one or more runs to a text stream as one Chrome trace; a run is a process, a row a thread."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._runs = 0
        stream.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        self._first = True

    def run(self, name: str, experts: int) -> RunTimeline:
        """The observer of one run, called `name`, of a model with `experts` experts per layer."""
        self._runs += 1
        self.emit({"ph": "M", "pid": self._runs, "tid": 0, "name": "process_name", "args": {"name": name}})
        for row, label in enumerate(ROWS):
            self.emit({"ph": "M", "pid": self._runs, "tid": row, "name": "thread_name", "args": {"name": label}})
        return RunTimeline(self, self._runs, experts)

    def emit(self, entry: dict[str, Any]) -> None:
        """Write one trace event."""
        self._stream.write(("" if self._first else ",\n") + json.dumps(entry, separators=(",", ":")))
        self._first = False

    def close(self) -> None:
        """End the document."""
        self._stream.write("\n]}\n")


class RunTimeline:
    """Observes one run and turns it into spans."""

    def __init__(self, writer: TimelineWriter, pid: int, experts: int) -> None:
        self._writer = writer
        self._pid = pid
        self._experts = experts
        self._batches: dict[int, Submit] = {}
        self._busy_from = 0
        """When the model that computes now began its current piece."""
        self._reached: LayerReached | None = None
        """The open layer."""

    def observe(self, event: Event, commands: tuple[Command, ...]) -> None:
        """Take in an event and what the scheduler answered."""
        now = event.time
        if isinstance(event, StepBegun | PrefillBegun):
            self._busy_from = now
        elif isinstance(event, TokenDrafted):
            if self._reached is None:  # What is drafted past the window hides in waits.
                self._span("draft", f"token {event.token}", self._busy_from, now, {"probability": event.prob})
                self._busy_from = now
        elif isinstance(event, LayerReached):
            self._reached = event
        elif isinstance(event, LayerDone):
            for start, end in event.waits:
                self._compute(event.layer, start)
                self._span("wait", f"layer {event.layer}", start, end, {})
                self._busy_from = end
            self._compute(event.layer, now)
        elif isinstance(event, HostComputed):
            self._span("CPU", f"expert {event.layer}.{event.expert}", event.started, event.ended, {})
        elif isinstance(event, BatchArrived):
            batch = self._batches.pop(event.batch)
            keys = [divmod(load.key, self._experts) for load in batch.loads]
            self._span("link", batch.purpose.value, event.started, event.ended, {"batch": event.batch, "experts": keys})
        for command in commands:
            if isinstance(command, Submit):
                self._batches[command.batch] = command

    def _compute(self, layer: int, until: int) -> None:
        """The GPU has computed until then: attention up to where the router spoke, experts from there on."""
        reached = self._reached
        if reached is not None and reached.time <= until:
            self._span("GPU", f"attention {layer}", self._busy_from, reached.time, {"experts": reached.experts})
            self._busy_from, self._reached = reached.time, None
        self._span("GPU", f"experts {layer}", self._busy_from, until, {})
        self._busy_from = until

    def _span(self, row: str, name: str, start: int, end: int, args: dict[str, Any]) -> None:
        if start == end:
            return
        self._writer.emit(
            {
                "ph": "X",
                "pid": self._pid,
                "tid": ROWS.index(row),
                "name": name,
                "ts": start / 1000,
                "dur": (end - start) / 1000,
                "args": args,
            }
        )
