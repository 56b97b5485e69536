"""Time in the engine: as it passes (`real_clock`), or as a cost model has it (`virtual_clock`).

A clock carries out what is handed to link and CPU, and gives notice of what happened during an effect of the step
program.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from spmoe.state.commands import Submit
from spmoe.state.events import BatchArrived, BatchFailed, HostComputed


class Notice(NamedTuple):
    """An event beside the effect under way, for the scheduler; `cause` is that of a failure."""

    event: BatchArrived | BatchFailed | HostComputed
    cause: Exception | None = None


class Clock(Protocol):
    """Methods named after what is over return what happened until then; the driver delivers each to the scheduler
    before it asks for the next.  Afterwards `now` is when it was over."""

    measures: bool
    """Whether times are measured."""
    now: int
    """Nanoseconds since the run began."""
    idle_ns: int
    """How long the device has had nothing to compute during waits, in all."""

    def submit(self, submit: Submit) -> None:
        """Hand a batch to the link."""

    def hand_over(self, layer: int, experts: Sequence[int], tokens: Sequence[int]) -> None:
        """These experts of `layer`, with as many tokens each, have been handed to the CPU."""

    def poll(self) -> Iterable[Notice]:
        """Nothing is over: what has happened meanwhile."""

    def drafted(self, first: int, end: int, read: int, forecasts: int) -> Iterable[Notice]:
        """The draft, which reads `read` tokens for the one that it proposes, has gone through its share for the layers
        `first` to `end` (exclusive), and has given forecasts for so many."""

    def attended(self, layer: int, tokens: int, context: int) -> Iterable[Notice]:
        """A layer's attention and router."""

    def computed(self, tokens: Sequence[int]) -> Iterable[Notice]:
        """Experts in slots, with as many tokens each."""

    def accepted(self, tokens: int) -> Iterable[Notice]:
        """What a pass puts out is chosen, of which `tokens` were verified (1 behind a prompt)."""

    def wait(self) -> Iterable[Notice]:
        """Wait for something to happen; at least one thing does."""
