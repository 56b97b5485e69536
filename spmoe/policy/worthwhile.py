"""Prefetches that are worth the link's time, the earliest deadline first, in place of a cutoff layer.

A prefetch that is needed saves the verifier a stall: as long as a load takes, or as long as nobody else would have
asked for the link, whichever is shorter.  One that is not needed delays the next demand load by a whole load, or not at
all in verification on a link that is through with a load before the next layer asks.  So with a probability of p it is
worth the link's time where

    p * min(load, time until the next demand) > (1 - p) * delay + d * load

where d is the probability that this pass has yet to need whoever is displaced: that costs a load too.  A need of the
next pass counts half, for a demand load in the prefetch's place would have displaced somebody as well.

While the draft runs, the next demand comes when the verifier begins; later, as a rule with the next layer.

A link may be so fast that all of a layer comes while the one before computes.  Then whoever leaves in verification can
be back before its layer is reached, where that is reached later than that of whoever comes: there d is 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spmoe.policy.background import BackgroundLoads
from spmoe.policy.foresight import ExpectedOrder, Foresight, NextUses
from spmoe.policy.planner import Pace
from spmoe.policy.prefetch import Scope
from spmoe.policy.use_rates import ONE
from spmoe.state.events import DraftPredicted, LayerReached, PrefillBegun, StepBegun
from spmoe.state.forecast import NOTHING, Forecast, Wish
from spmoe.state.keys import Shape

if TYPE_CHECKING:
    from spmoe.policy.clairvoyant import Future


@dataclass(frozen=True, slots=True)
class ForesightAhead(Foresight):
    """As `Foresight`; what it is likely enough to need is fetched ahead, through drafting and verification.

    One load waits in the queue, no more: the next is chosen when the link takes it, by what is known then.  So there is
    nothing to cancel but that one, which is dropped when its layer is reached without needing it.
    """

    def forecast(self, scope: Scope, future: Future | None) -> Forecast:
        """A forecast fed by `DraftPredicted` and `LayerReached`."""
        shape = Shape(scope.layers, scope.experts, scope.top_k)
        # A link that nobody waits for has other work to do.
        kind = BackgroundLoads if scope.pace.host_ns else WorthwhileLoads
        forecast = kind(shape, scope.pace)
        forecast.predicted_layers, forecast.predicted_group = scope.layers, self.group
        return forecast


class WorthwhileLoads(NextUses):
    """Next uses, and what of them should be fetched ahead."""

    looks_ahead = True
    expires = True

    def __init__(self, shape: Shape, pace: Pace) -> None:
        super().__init__(shape)
        self._pace, self._load_ns = pace, pace.load_ns
        self._fast = pace.load_ns <= pace.least_layer_ns
        """Whether a load is over before the next layer asks for the link."""
        self._streams = pace.latency_ns + shape.experts * pace.transfer_ns <= pace.least_layer_ns
        """Whether the loads of a whole layer are."""
        self._order: ExpectedOrder
        self._now = self._verified_from = self._link_free_at = 0
        self._drafting = False
        self._next_layer = 0
        self._offered_at = 0
        """What was left of a load's time when the last wish was made."""
        self._may_find = False
        """Whether there may be something to wish for: not looked yet since something changed."""

    def watch(self, order: ExpectedOrder) -> None:
        self._order = order

    def prefill_begun(self, event: PrefillBegun) -> Iterable[Wish]:
        self._enter(event.time, drafting=False)
        return super().prefill_begun(event)

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        self._enter(event.time, drafting=True)
        self._verified_from = event.time + max(0, gamma - len(self._chances)) * self._pace.draft_ns
        super().step_begun(event, gamma)

    def draft_predicted(self, event: DraftPredicted) -> Iterable[Wish]:
        self._now = event.time
        self._may_find = True
        return super().draft_predicted(event)

    def layer_reached(self, event: LayerReached) -> Iterable[Wish]:
        self._now, self._drafting, self._may_find = event.time, False, True
        self._next_layer = event.layer + 1
        return super().layer_reached(event)

    def top_up(self, time: int, queued: int, submitted: int) -> Iterable[Wish]:
        if queued or not self._may_find:
            return NOTHING
        if self._heard:
            self._heed()
        load, spare = self._load_ns, self._spare()
        first = self._next_layer * self._experts
        if spare <= 0 or first == len(self._needed):
            self._may_find = False
            return NOTHING
        chances = self._needed[first:]
        delay = self._delay()
        worth = (chances > ONE * delay // (delay + spare)) & self._order.absent[first:]
        earliest = int(worth.argmax())
        if not worth[earliest]:
            self._may_find = False
            return NOTHING
        # Of the earliest layer the likeliest.
        start = earliest - earliest % self._experts
        layer = slice(start, start + self._experts)
        key = first + start + int((chances[layer] * worth[layer]).argmax())
        if self._drafting:
            self._link_free_at = max(self._now, self._link_free_at) + load
        self._offered_at = spare
        return ((key, key // self._experts, 0),)

    def worth(self, key: int, victim: int) -> bool:
        """As the base says; and what the victim is worth counts: a load if this pass needs it, half a load if the next
        one does.  Where whole layers come in time, only who is reached first counts, and in a layer who is likelier."""
        chance, risk = self._needed.item(key), self._needed.item(victim)
        if self._streams and not self._drafting:
            later = self._ahead(victim) - self._ahead(key)
            return later > 0 or (later == 0 and risk < chance)
        if not super().worth(key, victim):
            return False
        ahead = victim >= self._next_layer * self._experts
        lost = (ONE - chance) * self._delay() + (risk if ahead else risk // 2) * self._load_ns
        return chance * self._offered_at > lost

    def _ahead(self, key: int) -> int:
        """How many layers behind the next one that of `key` is reached."""
        return (key // self._experts - self._next_layer) % self._layers

    def _delay(self) -> int:
        """How much later the next demand load comes by a load that nobody needs: not at all where the link is so fast
        that it is over before the next layer asks."""
        return 0 if self._fast and not self._drafting else self._load_ns

    def _spare(self) -> int:
        """How much of a load that begins now, or as soon as the link is free, would be over before somebody else asks
        for the link."""
        if not self._drafting:
            return min(self._pace.layer_ns, self._load_ns)
        return min(self._verified_from - max(self._now, self._link_free_at), self._load_ns)

    def _enter(self, time: int, drafting: bool) -> None:
        self._now, self._drafting, self._next_layer = time, drafting, 0
        self._may_find = False
