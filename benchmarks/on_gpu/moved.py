"""What the link moved while tokens were put out, without what it moved for prompts."""

from __future__ import annotations

from typing import Any

from spmoe.results.transfers import TransferFold, Transfers
from spmoe.state.commands import Command
from spmoe.state.events import Event, RequestBegun, StepBegun


class DecodeTransfers:
    """Watches a run: a prompt touches nearly all experts, which hides what a short answer takes."""

    def __init__(self, expert_bytes: int) -> None:
        self._fold = TransferFold(expert_bytes)
        self._expert_bytes = expert_bytes
        self._start: Transfers | None = None
        """What had been moved where the request's decode began; None before."""
        self._before = Transfers(0, expert_bytes, 0, 0, 0, 0)
        """In the decode of earlier requests."""

    def observe(self, event: Event, commands: tuple[Command, ...]) -> None:
        """Take in an event and what the scheduler answered."""
        if isinstance(event, RequestBegun):
            self._before, self._start = self.result(), None
        elif isinstance(event, StepBegun) and self._start is None:
            self._start = self._fold.result()
        self._fold.observe(event, commands)

    def result(self) -> Transfers:
        """The totals so far."""
        if self._start is None:
            return self._before
        before, start, now = self._before, self._start, self._fold.result()
        return Transfers(
            before.loads + now.loads - start.loads,
            self._expert_bytes,
            before.busy_ns + now.busy_ns - start.busy_ns,
            before.stalled_ns + now.stalled_ns - start.stalled_ns,
            before.drafted + now.drafted - start.drafted,
            before.accepted + now.accepted - start.accepted,
        )

    def to_json(self) -> dict[str, Any]:
        """Of the whole run."""
        found = self.result()
        share, speed = found.hidden_share, found.bytes_per_s
        return {
            "moved_bytes": found.bytes,
            "hidden_share": None if share is None else round(share, 4),
            "gb_per_s": None if speed is None else round(speed / 1e9, 3),
            "acceptance": None if found.acceptance is None else round(found.acceptance, 4),
        }
