"""What the parts of real rounds took, gathered from their events: the samples that a profile is made of.

Times are ns of the host's clock.  Prompts are left out.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import NamedTuple

from spmoe.drive.draft_position import Unread
from spmoe.state.commands import Command, LayerPlan, Speculate, Submit
from spmoe.state.events import (
    BatchArrived,
    Event,
    HostComputed,
    LayerDone,
    LayerReached,
    PrefillBegun,
    RequestBegun,
    StepBegun,
    StepEnded,
    TokenDrafted,
)

Entry = tuple[Event, tuple[Command, ...]]


class Span(NamedTuple):
    """From where a layer's routing is known to where the next one's is: experts, and the attention behind them.

    Behind the last layer it lasts over the end of the round to the beginning of the next.  `tokens` are those of the
    pass, `experts` the tokens of each expert that was computed in a slot; `ns` is without waits, and `computing` the
    part of it until the driver was done with the experts, in which it received `landed` loads and
    `results` of the CPU; `seen` are loads that it received afterwards.
    """

    tokens: int
    experts: tuple[int, ...]
    ns: int
    computing: int
    landed: int
    results: int
    seen: int


class Drafted(NamedTuple):
    """A draft token: what was read for it, for how many layers there were forecasts, and loads that arrived."""

    read: int
    forecasts: int
    landed: int
    ns: int


class StepTimings:
    """Observes a run."""

    def __init__(self) -> None:
        self.drafts: list[Drafted] = []
        self.entries: dict[int, list[int]] = defaultdict(list)
        """From the end of drafting to the first router's word, by the tokens of the pass."""
        self.spans: list[Span] = []
        """Of all layers but the last."""
        self.tails: list[Span] = []
        """Of the last layer."""
        self.notices: list[int] = []
        """From an arrival that ended a wait to where it was known."""
        self.transfers: list[tuple[int, int]] = []
        """What batches took that arrived while a layer was under way, and how many loads were in each."""
        self.host: dict[int, list[int]] = defaultdict(list)
        """Experts on the CPU, by their tokens."""
        self.handovers: list[int] = []
        """From where a layer's routing is known to where the CPU begins."""
        self.deciding: dict[int, list[float]] = defaultdict(list)
        """What the scheduler took per layer, run by run, by the tokens drafted in a round; put in from outside."""
        self.decode_ns = 0
        """All rounds, from one beginning to the next."""
        self._unread = Unread()
        self._position = 0
        self._loads: dict[int, int] = {}
        """How many are in each batch under way."""
        self._round: list[Entry] = []

    def observe(self, event: Event, commands: tuple[Command, ...]) -> None:
        """Take in an event and what the scheduler answered."""
        self._loads.update({each.batch: len(each.loads) for each in commands if isinstance(each, Submit)})
        if isinstance(event, RequestBegun):
            self._round.clear()  # The time before is not that of a round.
            self._unread.request_begun()
            self._position = 0
        elif isinstance(event, PrefillBegun):
            self._position = event.tokens
        elif isinstance(event, StepBegun):
            self._fold(event.time)
            self._round = [(event, commands)]
        elif self._round:
            self._round.append((event, commands))

    def _fold(self, end: int) -> None:
        """Takes a whole round apart, which the next one follows at `end`."""
        if not self._round:
            return
        tokens = self._draft()
        reached = [place for place, (event, _) in enumerate(self._round) if isinstance(event, LayerReached)]
        for start, stop in pairwise([*reached, len(self._round)]):
            last = stop == len(self._round)
            until = end if last else self._round[stop][0].time
            (self.tails if last else self.spans).append(self._layer(self._round[start:stop], tokens, until))
        self.decode_ns += end - self._round[0][0].time

    def _draft(self) -> int:
        """The part before the first layer; returns the tokens of the pass."""
        self._unread.round_begun(self._position)
        mark, tokens, predicted, landed = self._round[0][0].time, 1, 0, 0
        for event, commands in self._round:
            if isinstance(event, StepBegun):
                speculate = commands[-1]
                assert isinstance(speculate, Speculate)
                predicted = speculate.layers
            elif isinstance(event, TokenDrafted):
                self.drafts.append(Drafted(self._unread.draft(), predicted, landed, event.time - mark))
                mark, landed = event.time, 0
                tokens += 1
            elif isinstance(event, BatchArrived):
                landed += self._loads[event.batch]
            elif isinstance(event, LayerReached) and event.layer == 0:
                self.entries[tokens].append(event.time - mark)
            elif isinstance(event, StepEnded):
                self._position += event.accepted + 1
                self._unread.round_ended(self._position)
        return tokens

    def _layer(self, entries: list[Entry], tokens: int, until: int) -> Span:
        """One layer's events, from its router's word on."""
        event, commands = entries[0]
        plan = commands[-1]
        assert isinstance(event, LayerReached) and isinstance(plan, LayerPlan)
        counts = dict(zip(event.experts, event.tokens, strict=True))
        reached = began = event.time
        waited = done = results = 0
        arrivals: list[BatchArrived] = []
        landed = 0
        for event, _ in entries[1:]:
            if isinstance(event, HostComputed):
                results += 1
                if event.expert == plan.host[0]:
                    self.handovers.append(event.started - reached)
                    began = event.started
                # From the end of the one before: to go on with the next takes its time, too.
                self.host[counts[event.expert]].append(event.ended - began)
                began = event.ended
            elif isinstance(event, BatchArrived):
                arrivals.append(event)
            elif isinstance(event, LayerDone):
                waited, done, landed = sum(end - start for start, end in event.waits), event.time, self._sum(arrivals)
                for _, end in event.waits:
                    # The wait is over when what ended it is known: looking at the clock lies between the two.
                    ending = next((each for each in arrivals if each.time >= end), None)
                    if ending is not None:
                        self.notices.append(ending.time - ending.ended)
        self.transfers += [(each.ended - each.started, self._loads[each.batch]) for each in arrivals]
        experts = tuple(count for expert, count in counts.items() if expert not in plan.host)
        return Span(
            tokens,
            experts,
            until - reached - waited,
            done - reached - waited,
            landed,
            results,
            self._sum(arrivals) - landed,
        )

    def _sum(self, arrivals: list[BatchArrived]) -> int:
        """How many loads arrived."""
        return sum(self._loads[each.batch] for each in arrivals)
