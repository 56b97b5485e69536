"""What the link moved in a run, how much of that nobody waited for, and what became of drafted tokens."""

from __future__ import annotations

from dataclasses import dataclass

from spmoe.state.commands import Command, Speculate, Submit, Verify
from spmoe.state.events import BatchArrived, Event, LayerDone, StepEnded


@dataclass(frozen=True, slots=True)
class Transfers:
    """Totals of a run, prompts included.  Times in ns.

    `stalled_ns` is the part of `busy_ns` in which the verifier waited.
    """

    loads: int
    expert_bytes: int
    busy_ns: int
    stalled_ns: int
    drafted: int
    accepted: int

    @property
    def bytes(self) -> int:
        """Bytes that arrived."""
        return self.loads * self.expert_bytes

    @property
    def hidden_share(self) -> float | None:
        """Share of the link's time, and so of the bytes, behind compute; None where nothing was moved."""
        return 1 - self.stalled_ns / self.busy_ns if self.busy_ns else None

    @property
    def bytes_per_s(self) -> float | None:
        """Achieved bandwidth: bytes over the time in which the link worked."""
        return self.bytes * 1e9 / self.busy_ns if self.busy_ns else None

    @property
    def acceptance(self) -> float | None:
        """Accepted / drafted tokens; None where none was drafted."""
        return self.accepted / self.drafted if self.drafted else None


class TransferFold:
    """Watches a run; `result()` tells the totals so far."""

    def __init__(self, expert_bytes: int) -> None:
        self._expert_bytes = expert_bytes
        self._loads = self._busy_ns = self._stalled_ns = self._drafted = self._accepted = 0
        self._window = 0
        """Drafted tokens that the window of the step under way holds."""
        self._batches: dict[int, int] = {}
        """Loads of those submitted."""
        self._arrived: list[tuple[int, int]] = []
        """Transfers of which it is not known yet whether somebody waited for them: from when to when."""
        self._waits: list[tuple[int, int]] = []
        """Waits that transfers to come may still overlap."""
        self._pending: list[tuple[Event, tuple[Command, ...]]] = []

    def observe(self, event: Event, commands: tuple[Command, ...]) -> None:
        """Take in an event and what the scheduler answered."""
        self._pending.append((event, commands))
        if type(event) is StepEnded:
            self._fold()

    def _fold(self) -> None:
        """Work off what was observed: a step at a time, so that a run is held up for as little as can be."""
        for event, commands in self._pending:
            if isinstance(event, BatchArrived):
                self._loads += self._batches.pop(event.batch)
                self._arrived.append((event.started, event.ended))
            elif isinstance(event, LayerDone):
                self._waits += event.waits
                self._settle()
            elif isinstance(event, StepEnded):
                self._drafted += self._window
                self._accepted += event.accepted
            for command in commands:
                if isinstance(command, Submit):
                    self._batches[command.batch] = len(command.loads)
                elif isinstance(command, Speculate):
                    self._window = command.gamma
                elif isinstance(command, Verify):
                    self._window = command.drafted
        self._pending.clear()

    def result(self) -> Transfers:
        """The totals so far."""
        self._fold()
        self._settle()
        return Transfers(
            self._loads, self._expert_bytes, self._busy_ns, self._stalled_ns, self._drafted, self._accepted
        )

    def _settle(self) -> None:
        for started, ended in self._arrived:
            self._busy_ns += ended - started
            for begin, end in self._waits:
                self._stalled_ns += max(0, min(end, ended) - max(begin, started))
        if not self._batches:
            self._waits.clear()  # What is yet to be submitted begins later.
        elif self._arrived:
            last = self._arrived[-1][1]
            self._waits = [wait for wait in self._waits if wait[1] > last]
        self._arrived.clear()
