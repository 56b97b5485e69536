"""The host's CPU as a place where experts compute: one thread beside the one that drives the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import NamedTuple

import torch

from engine.memory.closing import Closing


class HostResult(NamedTuple):
    """An expert of `layer` is computed; times are nanoseconds since the worker's start."""

    layer: int
    expert: int
    started_ns: int
    ended_ns: int


class HostWorker(Closing):
    """Computes one expert after the other, in the order asked for.  All methods belong to one thread."""

    def __init__(self, start_ns: int | None = None) -> None:
        """Times count from `start_ns`, a reading of `time.perf_counter_ns` (None: now)."""
        self._start_ns = time.perf_counter_ns() if start_ns is None else start_ns
        # A thread does not inherit how many threads it may compute with, and sums depend on that.
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(1, "spmoe-host", initializer=torch.set_num_threads, initargs=(threads,))
        self._done: SimpleQueue[HostResult | BaseException] = SimpleQueue()
        self.outstanding = 0
        """Experts whose result was not handed out yet."""

    def compute(self, layer: int, expert: int, function: Callable[[], torch.Tensor]) -> Future[torch.Tensor]:
        """Have `function` compute an expert; returns at once."""
        self.outstanding += 1
        return self._pool.submit(self._compute, layer, expert, function)

    def finished(self, most: int | None = None) -> list[HostResult]:
        """What finished since it was last asked, in order, at most so many; does not wait.

        Raises what a computation raised.
        """
        found: list[HostResult] = []
        while self.outstanding and len(found) != most:
            try:
                found.append(self._take(block=False))
            except Empty:
                break
        return found

    def wait(self) -> HostResult:
        """The next result; RuntimeError when none is outstanding."""
        if not self.outstanding:
            raise RuntimeError("the CPU has nothing to compute")
        return self._take(block=True)

    def close(self) -> None:
        """Finish the expert under way, drop the rest and join the thread.  Idempotent."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _take(self, block: bool) -> HostResult:
        result = self._done.get(block=block)
        self.outstanding -= 1
        if isinstance(result, BaseException):
            raise result
        return result

    def _compute(self, layer: int, expert: int, function: Callable[[], torch.Tensor]) -> torch.Tensor:
        started = time.perf_counter_ns()
        try:
            with torch.inference_mode():
                output = function()
        except BaseException as error:
            self._done.put(error)
            raise
        ended = time.perf_counter_ns()
        self._done.put(HostResult(layer, expert, started - self._start_ns, ended - self._start_ns))
        return output
