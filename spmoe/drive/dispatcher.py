"""A driver's connection to the scheduler: events go in, submissions go to the link, and what has landed is kept.

All drivers need the same of it, whether their time is simulated, virtual or real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from spmoe.state.commands import Command, Reply, Submit
from spmoe.state.events import BatchArrived, BatchFailed, Event, HostComputed, LayerReached

Handle = Callable[[Event], tuple[Command, ...]]
"""`Scheduler.handle`, or a function around it."""

Observer = Callable[[Event, tuple[Command, ...]], None]
"""Sees every event with the scheduler's commands, before they are carried out: metrics, logs and timelines are such."""


class Dispatcher:
    """Hands events to a scheduler one at a time, and keeps what has landed for the layer that is open."""

    def __init__(
        self, handle: Handle, experts: int, submit: Callable[[Submit, int], None], observers: tuple[Observer, ...] = ()
    ) -> None:
        """`experts` is their number per layer; `submit` puts a batch on the link at a time in ns."""
        self._handle = handle
        self._experts = experts
        self._submit = submit
        self._observers = observers
        self.layer = 0
        """The layer reached last."""
        self.on_link: dict[int, Submit] = {}
        """Batches that were submitted and have not arrived, by number."""
        self._landed: list[int] = []
        """Keys that have arrived since the layer was reached and were not taken yet."""
        self._cpu_results: list[int] = []
        """Experts of the layer that the CPU has computed and that were not taken yet."""
        self._on_cpu: frozenset[int] = frozenset()
        """Keys of the layer that the CPU computes; their weights may arrive all the same."""

    def dispatch(self, event: Event) -> Reply | None:
        """Hand an event to the scheduler and its submissions to the link; returns the reply, if there is one."""
        if type(event) is LayerReached:
            # What arrived before is among the hits, or evicted again.
            self._landed.clear()
            self._on_cpu = frozenset()
            self.layer = event.layer
        commands = self._handle(event)
        for observe in self._observers:
            observe(event, commands)
        reply: Reply | None = None
        for command in commands:
            if type(command) is Submit:
                self.on_link[command.batch] = command
                self._submit(command, event.time)
            else:
                reply = command  # type: ignore[assignment]
        return reply

    def deliver(self, event: BatchArrived | BatchFailed | HostComputed) -> None:
        """Link or CPU completed something: the scheduler learns of it, and what has landed is kept."""
        if type(event) is BatchArrived:
            loads = self.on_link.pop(event.batch).loads
            self.dispatch(event)
            on_cpu = self._on_cpu
            self._landed += [key for key, _, _ in loads if key not in on_cpu]
        elif type(event) is HostComputed:
            self.dispatch(event)
            self._cpu_results.append(event.expert)
        else:
            self.dispatch(event)

    def assign_to_cpu(self, experts: Sequence[int]) -> None:
        """The CPU computes these experts of the layer: they have landed with its results, not with their weights."""
        first = self.layer * self._experts
        self._on_cpu = frozenset([first + expert for expert in experts])

    def take(self, missing: Set[int]) -> tuple[list[int], list[int]]:
        """Those of the `missing` experts of the layer that have landed, in order of arrival; they do not come again.

        Returns those in slots, and those that the CPU has computed.
        """
        if not (self._landed or self._cpu_results):
            return [], []
        landed: list[int] = []
        computed: list[int] = []
        if self._landed:
            first = self.layer * self._experts
            landed = [key - first for key in self._landed if key - first in missing]
            self._landed = [key for key in self._landed if key - first not in missing]
        if self._cpu_results:
            computed = [expert for expert in self._cpu_results if expert in missing]
            self._cpu_results = [expert for expert in self._cpu_results if expert not in missing]
        return landed, computed
