"""Time in the engine as it passes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import torch

from engine.execution.clock import Notice
from engine.execution.cpu_worker import HostResult, HostWorker
from engine.memory.link import Completion, Link
from spmoe.state.commands import Submit
from spmoe.state.events import BatchArrived, BatchFailed, HostComputed


class RealClock:
    """Time as it passes: what happened becomes known when it is polled."""

    measures = True

    def __init__(self, link: Link, host: HostWorker, start_ns: int, device: torch.device) -> None:
        """`start_ns` is what the times of link and host count from."""
        self._link = link
        self._host = host
        self._start_ns = start_ns
        self._device = device
        self.now = 0
        self.idle_ns = 0

    def submit(self, submit: Submit) -> None:
        self._link.submit(submit)

    def hand_over(self, layer: int, experts: Sequence[int], tokens: Sequence[int]) -> None:
        pass

    def poll(self) -> Iterable[Notice]:
        if self._link.outstanding or self._host.outstanding:
            return self._completed()
        self._read_time()
        return ()

    def drafted(self, first: int, end: int, read: int, forecasts: int) -> Iterable[Notice]:
        return self.poll()

    def attended(self, layer: int, tokens: int, context: int) -> Iterable[Notice]:
        return self.poll()

    def computed(self, tokens: Sequence[int]) -> Iterable[Notice]:
        return self.poll()

    def accepted(self, tokens: int) -> Iterable[Notice]:
        return self.poll()

    def wait(self) -> Iterable[Notice]:
        if self._device.type == "cuda":
            yield self._wait_beside_device()
            return
        began = time.perf_counter_ns()
        if not self._host.outstanding:
            notice = self._arrival(self._link.wait())
        elif not self._link.outstanding:
            notice = self._result(self._host.wait())
        else:
            notice = self._wait_for_either()
        self.idle_ns += self._start_ns + self.now - began  # Until it was known: no wait ends later than now.
        yield notice

    def _completed(self) -> Iterator[Notice]:
        for completion in self._link.completions():
            yield self._arrival(completion)
        if self._host.outstanding:
            for result in self._host.finished():
                yield self._result(result)
        self._read_time()

    def _wait_for_either(self) -> Notice:
        """Whatever comes first from two sides."""
        while True:
            for result in self._host.finished(1):
                return self._result(result)
            try:
                return self._arrival(self._link.wait(1e-4))
            except TimeoutError:
                pass

    def _wait_beside_device(self) -> Notice:
        """The device may still be computing what was enqueued before: it is idle from when it is through."""
        if not (self._link.outstanding or self._host.outstanding):
            raise RuntimeError("nothing is under way to wait for")
        through = torch.cuda.Event()
        through.record(torch.cuda.current_stream(self._device))
        idle_from: int | None = None
        while True:
            if idle_from is None and through.query():
                idle_from = time.perf_counter_ns()
            notice: Notice | None = None
            for result in self._host.finished(1):
                notice = self._result(result)
            if notice is None and self._link.outstanding:
                with suppress(TimeoutError):
                    notice = self._arrival(self._link.wait(0))
            if notice is None:
                time.sleep(0)  # The workers need the interpreter, too.
            else:
                if idle_from is not None:
                    self.idle_ns += self._start_ns + self.now - idle_from
                return notice

    def _read_time(self) -> None:
        self.now = time.perf_counter_ns() - self._start_ns

    def _arrival(self, completion: Completion) -> Notice:
        self._read_time()
        if completion.error is not None:
            return Notice(BatchFailed(self.now, completion.batch), completion.error)
        return Notice(BatchArrived(self.now, completion.batch, completion.started_ns, completion.ended_ns))

    def _result(self, result: HostResult) -> Notice:
        self._read_time()
        return Notice(HostComputed(self.now, result.layer, result.expert, result.started_ns, result.ended_ns))
