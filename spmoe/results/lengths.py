"""How many tokens each step has drafted, where a policy chooses that."""

from __future__ import annotations

from spmoe.state.commands import Command, Speculate, Verify
from spmoe.state.events import Event, StepBegun, StepEnded, TokenDrafted


class LengthFold:
    """Watches a run."""

    def __init__(self) -> None:
        self._drafted = 0
        self._lengths: list[int] = []

    def observe(self, event: Event, commands: tuple[Command, ...]) -> None:
        """Take in an event and what the scheduler answered."""
        kind = type(event)
        if kind is StepEnded:
            self._lengths.append(self._drafted)
        elif commands and (kind is StepBegun or kind is TokenDrafted):
            reply = commands[-1]
            if type(reply) is Speculate:
                self._drafted = reply.gamma
            elif type(reply) is Verify:
                self._drafted = reply.drafted

    def result(self) -> tuple[int, ...]:
        """Drafted tokens in the windows of the steps so far, one after the other."""
        return tuple(self._lengths)
