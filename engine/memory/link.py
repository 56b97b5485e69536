"""The link: one thread that carries submitted batches from the host store into slots, in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NamedTuple

from engine.memory.closing import Closing
from engine.memory.copiers import Copier, Flight, MemoryCopier, StreamCopier, runs
from engine.memory.host_store import HostStore
from engine.memory.slot_buffer import SlotBuffer
from spmoe.state.commands import Submit


class Completion(NamedTuple):
    """What became of a batch: all of it is in its slots, or, with an error, nothing of it may be used.

    The link worked on it from `started_ns` to `ended_ns`, nanoseconds since the link's start.
    """

    batch: int
    started_ns: int
    ended_ns: int
    error: Exception | None


class Link(Closing):
    """Carries out `Submit` commands; at most `depth` are outstanding, that is, their completion not yet handed out.

    All methods but `close` belong to one thread.  Under CUDA that thread's current stream is the one that computes:
    what it enqueues after a completion comes after the copies.  The worker thread keeps the process alive until
    `close`, so use the link in a `with` block or close it in a `finally`.
    """

    def __init__(
        self,
        store: HostStore,
        slots: SlotBuffer,
        depth: int,
        gbps: float | None = None,
        *,
        latency_ns: int = 0,
        start_ns: int | None = None,
        before_copy: Callable[[Submit, int], None] | None = None,
    ) -> None:
        """On the CPU `gbps` (10^9 bytes per second) and `latency_ns` emulate a slower link; CUDA has a real one.

        Times count from `start_ns`, a reading of `time.perf_counter_ns` (None: now).  `before_copy(submit, n)` is
        called by the worker before the n-th copy of a batch; tests raise in it what a copy might.
        """
        if store.layout != slots.layout:
            raise ValueError("host store and slots have different layouts")
        if depth < 1:
            raise ValueError(f"depth: expected at least 1, got {depth}")
        if gbps is not None and not gbps > 0:
            raise ValueError(f"gbps: expected more than 0, got {gbps}")
        cuda = slots.device.type == "cuda"
        if cuda and (gbps is not None or latency_ns):
            raise ValueError("only a link on the CPU can be slowed down")
        self.depth = depth
        self._slots = slots
        self._before_copy = before_copy
        self._closing = threading.Event()
        bandwidth = None if gbps is None else max(1, round(gbps * 1e9))
        self._copier: Copier = (
            StreamCopier(store, slots) if cuda else MemoryCopier(store, slots, self._closing, bandwidth, latency_ns)
        )
        self._start_ns = time.perf_counter_ns() if start_ns is None else start_ns
        self.outstanding = 0
        """Submissions whose completion was not handed out yet."""
        self._head: Flight | None = None
        """Taken from `_copied`, but not landed yet."""
        # These two are all that the threads say to each other; None is the last word.
        self._submitted: SimpleQueue[Flight | None] = SimpleQueue()
        self._copied: SimpleQueue[Flight | None] = SimpleQueue()
        self._cause: BaseException | None = None
        """What the worker died of."""
        self._worker = threading.Thread(target=self._work, name="spmoe-link", daemon=False)
        self._worker.start()

    @property
    def now(self) -> int:
        """Nanoseconds since the link's start."""
        return time.perf_counter_ns() - self._start_ns

    def submit(self, submit: Submit) -> None:
        """Have the loads of a batch copied, in order, behind what was submitted before; returns at once.

        Raises RuntimeError when `depth` submissions are outstanding, and when the link is closed or its worker dead.
        """
        self._require_worker()
        if self.outstanding >= self.depth:
            raise RuntimeError(f"batch {submit.batch}: {self.depth} submissions are outstanding already")
        self.outstanding += 1
        self._submitted.put(Flight(submit, self._slots.last_uses(load.slot for load in submit.loads)))

    def completions(self) -> list[Completion]:
        """What completed since it was last asked, in order of submission; does not wait.

        Raises RuntimeError when the link is closed, and from its cause when the worker is dead with nothing left.
        """
        found: list[Completion] = []
        while self.outstanding and (flight := self._take(0)) is not None and self._landed(flight):
            found.append(self._completion(flight))
        if not found:
            self._require_worker()
        return found

    def wait(self, timeout: float | None = None) -> Completion:
        """The next completion in order of submission; waits for it, at most `timeout` seconds.

        Raises TimeoutError, and RuntimeError when nothing is outstanding, the link is closed or its worker dead.
        """
        if not self.outstanding:
            self._require_worker()
            raise RuntimeError("nothing is on the link to wait for")
        until = None if timeout is None else time.monotonic() + timeout
        rest = timeout
        while (flight := self._take(rest)) is not None:
            if self._landed(flight):
                return self._completion(flight)
            if until is not None and (rest := until - time.monotonic()) <= 0:
                break
            time.sleep(0)  # The GPU is copying: look again, as a wait for a CUDA event does, but let the worker run.
        self._require_worker()
        raise TimeoutError(f"the next batch did not arrive in {timeout} s")

    def close(self) -> None:
        """Stop after the copy under way and join the worker; what was not carried out is dropped.  Idempotent."""
        self._closing.set()
        self._submitted.put(None)
        self._worker.join()

    def _require_worker(self) -> None:
        if self._closing.is_set():
            raise RuntimeError("the link is closed")
        if self._cause is not None:
            raise RuntimeError(f"the link's worker died: {self._cause!r}") from self._cause

    def _take(self, timeout: float | None) -> Flight | None:
        """The next batch that the worker is done with; None where there is none in time, or never will be."""
        if self._head is None and not self._closing.is_set():
            try:
                self._head = self._copied.get(timeout=timeout)
            except Empty:
                return None
            if self._head is None:
                self._copied.put(None)  # For the next one who asks.
        return self._head

    def _landed(self, flight: Flight) -> bool:
        if flight.error is None:
            try:
                return self._copier.landed(flight)
            except Exception as error:  # A copy failed on the GPU.
                flight.error, flight.ended = error, time.perf_counter_ns()
        return True

    def _completion(self, flight: Flight) -> Completion:
        self._head = None
        self.outstanding -= 1
        return Completion(
            flight.submit.batch, flight.started - self._start_ns, flight.ended - self._start_ns, flight.error
        )

    def _work(self) -> None:
        try:
            with self._copier.session():
                while (flight := self._submitted.get()) is not None and not self._closing.is_set():
                    self._carry(flight)
        except BaseException as cause:
            self._cause = cause
        finally:
            self._copied.put(None)

    def _carry(self, flight: Flight) -> None:
        submit = flight.submit
        try:
            self._copier.begin(flight)
            for number, run in enumerate(runs(submit.loads)):
                if self._closing.is_set():
                    return
                if self._before_copy is not None:
                    self._before_copy(submit, number)
                self._copier.copy(run)
            self._copier.end(flight)
        except Exception as error:
            flight.error, flight.ended = error, time.perf_counter_ns()
        self._copied.put(flight)
