"""The link between host memory and GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import simpy
from simpy.events import URGENT, EventPriority

from spmoe.drive.schedules import LinkSchedule
from spmoe.machine.cost import CostModel
from spmoe.policy.parts.runtime import Runtime
from spmoe.state.commands import Submit

ARRIVALS: Final = EventPriority(URGENT - 1)
"""At equal times what arrives is known before what was computed, wherever that was."""


class Arrival(simpy.Event):
    """A transfer is known to be over: `batch` is there, after the link moved it from `started` to `ended` (ns)."""

    def __init__(
        self,
        env: simpy.Environment,
        batch: Submit,
        started: int,
        ended: int,
        known: int,
        arrived: Callable[[Any], None],
    ) -> None:
        """Calls `arrived` with itself at `known`."""
        # As in SimPy's own Timeout, what Event's initialiser does is done here: there is one of these per load.
        self.env = env
        self.callbacks = [arrived]
        self._ok = True
        self._value = None
        self.batch = batch
        self.started = started
        self.ended = ended
        self.known = known
        env.schedule(self, ARRIVALS, known - env.now)


class Link:
    """Moves batches at the times of a `LinkSchedule`."""

    def __init__(
        self, env: simpy.Environment, cost: CostModel, runtime: Runtime, arrived: Callable[[Any], None]
    ) -> None:
        """`arrived` is called with an `Arrival` whenever a batch is all there."""
        self._env = env
        self._schedule = LinkSchedule(cost, runtime)
        self._notice_ns = cost.notice_ns()
        self._arrived = arrived

    @property
    def prefetched_at(self) -> int:
        """When all prefetches submitted so far are there."""
        return self._schedule.prefetched_at

    def submit(self, batch: Submit, now: int) -> None:
        """Put a batch on the link at `now`, which may be ahead of the event queue."""
        started, ended = self._schedule.submit(batch, now)
        Arrival(self._env, batch, started, ended, ended + self._notice_ns, self._arrived)

    def reserve(self, now: int, duration: int) -> int:
        """Keep the link from moving anything for `duration`, behind what is submitted; returns from when on."""
        return self._schedule.reserve(now, duration)
