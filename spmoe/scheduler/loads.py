"""Loads that wait for the link, and batches that are on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from spmoe.policy.parts.io_plan import IOPlan
from spmoe.policy.parts.pace import Pace
from spmoe.policy.parts.predictor import Predictor
from spmoe.state.commands import Command, Load, Purpose, Submit
from spmoe.state.residency import Residency

_DEMAND, _PREFETCH, _PRELOAD = Purpose
"""Purposes by names of this module: on Python 3.11, looking one up in its enum takes longer than comparing it."""


class TransferFailed(RuntimeError):
    """A batch failed twice."""


class Loads:
    """Demand loads in the order asked for, then the first contents of the cache, then what the predictor wants.

    What waits can be dropped or overtaken.  What is submitted is never torn.
    """

    def __init__(self, io: IOPlan, pace: Pace, depth: int, residency: Residency, predictor: Predictor) -> None:
        """At most `depth` batches are submitted at a time."""
        self.demands: dict[int, None] = {}
        """Keys that the verifier waits for."""
        self.preloads: dict[int, None] = {}
        """Keys of the first contents that have no slot yet."""
        self.predictor = predictor
        self.submitted: dict[int, Submit] = {}
        """Batches on the link, by number."""
        self._depth = depth
        self._per_batch = io.loads_per_batch(pace)
        self._pace = pace
        self._residency = residency
        self._batches = 0
        self._link_since = 0
        """Since when the link has worked on the first batch of those submitted."""

    def waits(self, key: int) -> bool:
        """Whether a load of `key` waits that is no demand load."""
        return key in self.predictor.wanted or key in self.preloads

    def demand(self, keys: Sequence[int]) -> None:
        """Queue loads that the verifier waits for; what waits of the same keys becomes them."""
        wanted, preloads = self.predictor.wanted, self.preloads
        for key in keys:
            if key in wanted:
                self.predictor.discard(key)
            if preloads:
                preloads.pop(key, None)
            self.demands[key] = None

    def preload(self, keys: Iterable[int]) -> None:
        """Queue those that are neither resident nor in flight."""
        residency = self._residency
        for key in keys:
            if key not in residency.resident and key not in residency.in_flight and key not in self.demands:
                self.preloads[key] = None

    def submit(self, time: int) -> list[Command]:
        """Batches for the link, as long as it has room, a load waits and a slot can be had."""
        submits: list[Command] = []
        while len(self.submitted) < self._depth:
            if self.demands:
                purpose, keys = _DEMAND, tuple(islice(self.demands, self._per_batch))
            elif self.preloads:
                purpose, keys = _PRELOAD, tuple(islice(self.preloads, self._per_batch))
            else:
                purpose, keys = _PREFETCH, tuple(self.predictor.next(self._per_batch))
            loads = self._claim(keys, purpose) if keys else ()
            if not loads:
                break
            batch = Submit(self._batches, purpose, loads)
            self._batches += 1
            if not self.submitted:
                self._link_since = time
            self.submitted[batch.batch] = batch
            submits.append(batch)
        return submits

    def _claim(self, keys: Sequence[int], purpose: Purpose) -> tuple[Load, ...]:
        """The loads of as many as get a slot; those no longer wait."""
        claim, demand = self._residency.claim, purpose is _DEMAND
        loads: list[Load] = []
        for key in keys:
            load = claim(key, demand)
            if load is None:
                break
            if demand:
                del self.demands[key]
            elif purpose is _PRELOAD:
                del self.preloads[key]
            else:
                self.predictor.discard(key)
            loads.append(load)
        return self._residency.align(loads) if len(loads) > 1 else tuple(loads)

    def arrived(self, batch: int, ended: int) -> None:
        """The batch of that number is through since `ended`."""
        self._link_since = ended
        for load in self.submitted.pop(batch).loads:
            self._residency.arrive(load.key)

    def failed(self, batch: int) -> Submit:
        """The batch of that number failed; returns its second attempt.  Raises TransferFailed where that was it."""
        failed = self.submitted[batch]
        if failed.attempt > 1:
            raise TransferFailed(f"batch {batch} failed twice; its loads: {failed.loads}")
        again = failed._replace(attempt=failed.attempt + 1)
        self.submitted[batch] = again
        return again

    def arrivals(self) -> Iterator[tuple[int, int]]:
        """The keys on the link and when they arrive (ns), in order, by the pace that the policy knows."""
        pace, arrives = self._pace, self._link_since + self._pace.latency_ns
        for batch in self.submitted.values():
            arrives += len(batch.loads) * pace.transfer_ns
            for load in batch.loads:
                yield load.key, arrives
