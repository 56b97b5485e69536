"""How long a scheduler takes to decide."""

from __future__ import annotations

from time import perf_counter_ns

from spmoe.scheduler.scheduler import Scheduler
from spmoe.state.commands import Command
from spmoe.state.events import BatchArrived, Event, HostComputed, LayerReached


class DecisionTimer:
    """Stands before a scheduler, and adds up its time."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._handle = scheduler.handle
        self._ns = self._layers = 0

    @property
    def ns_per_layer(self) -> float:
        """What the scheduler has taken per layer so far, without the events of arrivals."""
        return self._ns / self._layers if self._layers else 0.0

    def handle(self, event: Event) -> tuple[Command, ...]:
        """As `Scheduler.handle`."""
        began = perf_counter_ns()
        commands = self._handle(event)
        if type(event) is not BatchArrived and type(event) is not HostComputed:
            self._ns += perf_counter_ns() - began
            self._layers += type(event) is LayerReached
        return commands
