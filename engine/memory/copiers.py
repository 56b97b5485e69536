"""How bytes get from the host store into slots: copied by the link's own thread, or by the GPU on a stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, Protocol

import torch

from engine.memory.host_store import HostStore
from engine.memory.slot_buffer import SlotBuffer
from spmoe.machine.units import ceil_ns
from spmoe.state.commands import Load, Submit


class Run(NamedTuple):
    """Loads that are neighbours on the host and on the device: one copy."""

    key: int
    slot: int
    length: int


def runs(loads: Sequence[Load]) -> list[Run]:
    """The copies that `loads` take, in order; as many as `spmoe.policy.parts.io_plan.copies` counts."""
    found: list[Run] = []
    for load in loads:
        last = found[-1] if found else None
        if last is not None and (load.key, load.slot) == (last.key + last.length, last.slot + last.length):
            found[-1] = last._replace(length=last.length + 1)
        else:
            found.append(Run(load.key, load.slot, 1))
    return found


class Flight:
    """A submitted batch on its way; times are `time.perf_counter_ns()`."""

    __slots__ = ("ended", "error", "first", "guards", "last", "started", "submit", "submitted")

    def __init__(self, submit: Submit, guards: tuple[torch.cuda.Event, ...]) -> None:
        """`guards`: what the copies have to wait for, because it still reads the slots."""
        self.submit = submit
        self.guards = guards
        self.submitted = time.perf_counter_ns()
        self.started = self.submitted
        self.ended = self.submitted
        self.error: Exception | None = None
        self.first: torch.cuda.Event | None = None
        self.last: torch.cuda.Event | None = None


class Copier(Protocol):
    """Carries out batches, one after the other.  All but `landed` are called by the worker."""

    def session(self) -> AbstractContextManager[object]:
        """What the worker works within."""

    def begin(self, flight: Flight) -> None:
        """The copies of `flight` follow."""

    def copy(self, run: Run) -> None:
        """One copy."""

    def end(self, flight: Flight) -> None:
        """All copies of `flight` were made, or are on their way."""

    def landed(self, flight: Flight) -> bool:
        """Whether the bytes of an ended `flight` are there, with its times set; asked by the caller's thread."""


class MemoryCopier:
    """Copies between host memory by the worker itself (`copy_` runs outside the interpreter's lock).

    With a bandwidth it is slowed down to that of a link, in the simulator's terms: the latency of a submission runs
    while earlier batches move, and then the batch takes its bytes' time at least.  A thread wakes up late; so that this
    slows no later batch, the link's time goes on from when it should have.
    """

    def __init__(
        self, store: HostStore, slots: SlotBuffer, closing: threading.Event, bandwidth: int | None, latency_ns: int
    ) -> None:
        """`bandwidth` in bytes per second, None for as fast as it goes; nothing is waited for after `closing`."""
        self._store = store
        self._slots = slots
        self._closing = closing
        self._bandwidth = bandwidth
        self._latency_ns = latency_ns
        self._free_at = 0

    def session(self) -> AbstractContextManager[object]:
        return nullcontext()

    def begin(self, flight: Flight) -> None:
        if self._bandwidth is None:
            self._sleep_until(flight.submitted + self._latency_ns)
            flight.started = time.perf_counter_ns()
        else:
            flight.started = max(flight.submitted + self._latency_ns, self._free_at)
            self._sleep_until(flight.started)

    def copy(self, run: Run) -> None:
        self._slots.rows(run.slot, run.length).copy_(self._store.rows(run.key, run.length))

    def end(self, flight: Flight) -> None:
        flight.ended = time.perf_counter_ns()
        if self._bandwidth is not None:
            size = len(flight.submit.loads) * self._store.layout.size
            flight.ended = max(flight.ended, flight.started + ceil_ns(size, self._bandwidth))
            self._free_at = flight.ended
            self._sleep_until(flight.ended)

    def landed(self, flight: Flight) -> bool:
        return True

    def _sleep_until(self, until: int) -> None:
        while (rest := until - time.perf_counter_ns()) > 0 and not self._closing.wait(rest / 1e9):
            pass


class StreamCopier:
    """Enqueues copies on a CUDA stream of its own.  Events order them; the device is never synchronised as a whole.

    The copies of a batch wait for the last computation that read their slots; whoever learns that a batch landed, has
    its current stream wait for the copies.
    """

    def __init__(self, store: HostStore, slots: SlotBuffer) -> None:
        self._store = store
        self._slots = slots
        self._stream = torch.cuda.Stream(slots.device)
        self._stream.wait_stream(torch.cuda.current_stream(slots.device))  # The slots are being filled with zeros.
        self._anchor = torch.cuda.Event(enable_timing=True)
        self._anchor.record(self._stream)
        self._anchor.synchronize()
        self._anchor_ns = time.perf_counter_ns()

    @contextmanager
    def session(self) -> Iterator[None]:
        with torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                self._stream.synchronize()  # Until then host store and slots must not be freed.

    def begin(self, flight: Flight) -> None:
        flight.started = time.perf_counter_ns()
        for guard in flight.guards:
            self._stream.wait_event(guard)
        first = torch.cuda.Event(enable_timing=True)
        first.record(self._stream)
        flight.first = first

    def copy(self, run: Run) -> None:
        self._slots.rows(run.slot, run.length).copy_(self._store.rows(run.key, run.length), non_blocking=True)

    def end(self, flight: Flight) -> None:
        last = torch.cuda.Event(enable_timing=True)
        last.record(self._stream)
        flight.last = last

    def landed(self, flight: Flight) -> bool:
        first, last = flight.first, flight.last
        assert first is not None and last is not None
        if not last.query():
            return False
        now = time.perf_counter_ns()
        torch.cuda.current_stream(self._slots.device).wait_event(last)
        started = self._anchor_ns + round(self._anchor.elapsed_time(first) * 1e6)
        ended = started + round(first.elapsed_time(last) * 1e6)
        # The clocks of host and GPU drift: nothing starts before it was enqueued or ends after it was seen to be over.
        shift = max(flight.started - started, 0) or min(now - ended, 0)
        flight.started, flight.ended = started + shift, ended + shift
        self._anchor, self._anchor_ns = last, flight.ended
        return True
