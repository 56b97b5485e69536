"""A policy that knows the future: Belady's evictions, and prefetches as early as they do no harm.

The rule is the *aggressive* prefetcher of Cao et al. (SIGMETRICS 1995): as soon as the link has room, load what is
missing and needed soonest into the slot of what is needed farthest away, provided that this is needed later still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import ClassVar

from spmoe.errors import InputError
from spmoe.policy.parts.eviction import ByPredictor
from spmoe.policy.parts.future import EXPERT, LAST, NO_NEED, Future
from spmoe.policy.parts.predictor import Predictor, PredictorPart
from spmoe.policy.parts.scope import Scope
from spmoe.policy.parts.wanted import WantedSet
from spmoe.state.events import LayerDone, LayerReached, PrefillBegun, StepBegun
from spmoe.state.residency import VictimOrder

WINDOWS_AHEAD = 64
"""How far next uses are looked up.  What is not needed within them counts as needed never."""

QUEUED = 8
"""Loads kept in the queue; more would not start earlier, for the link takes them one after the other."""

FAR = 1 << 62


class Unforeseen(InputError):
    """A run needs what its future does not tell of: it is not the run that the future was read from."""


@dataclass(frozen=True, slots=True)
class Clairvoyant(PredictorPart):
    """Knows every window to come."""

    needs: ClassVar[frozenset[str]] = frozenset({"future"})

    def build(self, scope: Scope, future: Future | None) -> Predictor:
        """A predictor that reads the future; ValueError without one."""
        if future is None:
            raise ValueError("a clairvoyant policy needs the future: the trace of an earlier run")
        return FuturePredictor(scope, future)


class FuturePredictor(WantedSet, VictimOrder):
    """Next uses of all keys, as far as the trace goes."""

    def __init__(self, scope: Scope, future: Future) -> None:
        super().__init__(scope.experts)
        self._layers = scope.layers
        self._words = future.words
        self._read = 0
        """Words read so far, and the visits that they belong to."""
        self._visits_read = 0
        self._visits = 0
        """Visits reached in decode; the next is number `_visits`.  Those of a prefill count down to it from below."""
        self._prefill_layers = 0
        self._uses: dict[int, deque[int]] = {}
        """Visits to come that need a key, in order."""
        self._needed: list[tuple[int, int]] = []
        """A heap of (visit, key): uses to come of keys that are not wanted yet.  May hold outdated ones."""
        self._here: set[int] = set()
        """Keys that are resident, in flight, or wanted."""
        self._leaving: list[tuple[int, int]] = []
        """A heap of (-next use, key): the expert needed farthest away first.  May hold outdated entries."""
        self._stuck = False
        """No prefetch finds a slot before another layer has computed."""

    def prefill_begun(self, event: PrefillBegun) -> None:
        self._prefill_layers = self._layers
        for layer, cell in enumerate(event.touched):
            for expert in cell:
                key, visit = layer * self._experts + expert, self._visits - self._layers + layer
                self._uses.setdefault(key, deque()).appendleft(visit)
                heappush(self._needed, (visit, key))
                self._note(key)
        self._stuck = False

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        self._read_ahead()

    def layer_reached(self, event: LayerReached) -> None:
        if self._prefill_layers:
            visit = self._visits - self._prefill_layers
            self._prefill_layers -= 1
        else:
            visit = self._visits
            self._visits += 1
        for expert in event.experts:
            key = event.layer * self._experts + expert
            if self._next_use(key) != visit:
                raise Unforeseen(
                    f"layer {event.layer} needs expert {expert}, which the earlier run did not need there: "
                    "expected a trace of the very same run"
                )
            self._uses[key].popleft()
            self._note(key)
        if len(self._leaving) > 64 + 4 * len(self._here):
            self._leaving = [(-self._next_use(key), key) for key in self._here]
            heapify(self._leaving)

    def layer_done(self, event: LayerDone) -> None:
        self._stuck = False

    def look_ahead(self, time: int, waiting: int, submitted: int) -> bool:
        room = most = QUEUED - waiting
        while self._needed and room > 0:
            visit, key = heappop(self._needed)
            if key not in self._here and self._next_use(key) == visit:
                self._here.add(key)
                self._note(key)
                self.want(key, visit, 0)
                room -= 1
        return room < most

    def touch(self, keys: Iterable[int]) -> None:
        for key in keys:
            if key not in self._here:
                self._here.add(key)
                self._note(key)

    def forget(self, key: int) -> None:
        self._here.discard(key)
        if self._uses.get(key):
            heappush(self._needed, (self._next_use(key), key))

    def evict(self, pool: int, resident: Container[int], pinned: Container[int], key: int, demand: bool) -> int | None:
        if self._stuck and not demand:
            return None
        farthest = self._farthest_of(resident, pinned)
        if farthest is not None and (demand or self._next_use(farthest) > self._next_use(key)):
            self.forget(farthest)
            return farthest
        self._stuck = not demand
        return None

    def _farthest_of(self, resident: Container[int], pinned: Container[int]) -> int | None:
        farthest, passed_over = None, []
        while self._leaving:
            minus_use, key = self._leaving[0]
            if key in self._here and self._next_use(key) == -minus_use:
                if key in resident and key not in pinned:
                    farthest = key
                    break
                passed_over.append(self._leaving[0])
            heappop(self._leaving)
        for entry in passed_over:
            heappush(self._leaving, entry)
        return farthest

    def _next_use(self, key: int) -> int:
        uses = self._uses.get(key)
        return uses[0] if uses else FAR

    def _note(self, key: int) -> None:
        """The next use of `key` has changed, or it is new here."""
        if key in self._here:
            heappush(self._leaving, (-self._next_use(key), key))

    def _read_ahead(self) -> None:
        end = self._visits + WINDOWS_AHEAD * self._layers
        words, at, visit = self._words, self._read, self._visits_read
        while visit < end and at < len(words):
            word = words[at]
            expert = word & EXPERT
            if expert != NO_NEED:
                key = visit % self._layers * self._experts + expert
                uses = self._uses.setdefault(key, deque())
                uses.append(visit)
                heappush(self._needed, (visit, key))
                if len(uses) == 1:
                    self._note(key)
            if word & LAST:
                visit += 1
            at += 1
        self._read, self._visits_read = at, visit


@dataclass(frozen=True, slots=True)
class Farthest(ByPredictor[FuturePredictor]):
    """Belady's rule: evict what is needed farthest away; a prefetch only displaces what is needed later than itself."""

    predictor: ClassVar[type[Predictor]] = FuturePredictor

    def _order(self, pool_of: Sequence[int], predictor: FuturePredictor) -> VictimOrder:
        """The predictor itself: it knows all next uses."""
        return predictor
