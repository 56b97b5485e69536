"""A policy that knows the future: Belady's evictions, and prefetches as early as they do no harm.

The rule is the *aggressive* prefetcher of Cao et al. (SIGMETRICS 1995): as soon as the link has room, load what is
missing and needed soonest into the slot of what is needed farthest away, provided that this is needed later still.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import ClassVar

from spmoe.errors import InputError
from spmoe.policy.oracle.belady import Requests
from spmoe.policy.sp_moe.gates import Scope
from spmoe.state.events import LayerDone, LayerReached, PrefillBegun, StepBegun
from spmoe.state.forecast import Forecast, Wish
from spmoe.state.residency import VictimOrder
from spmoe.trace.windows import fixed_windows

WINDOWS_AHEAD = 64
"""How far next uses are looked up.  What is not needed within them counts as needed never."""

QUEUED = 8
"""Loads kept in the queue; more would not start earlier, for the link takes them one after the other."""

FAR = 1 << 62

_EXPERT = 0x7FFF
_LAST = 0x8000
_NO_NEED = _EXPERT


class Unforeseen(InputError):
    """A run needs what its future does not tell of: it is not the run that the future was read from."""


class Future:
    """The needs of all windows of a trace, in two bytes each: expert ids, visit by visit."""

    def __init__(self, requests: Requests, gamma: int) -> None:
        """Reads the windows of `gamma` drafted tokens in one pass."""
        self.words = array("H")
        for request in requests():
            for window in fixed_windows(request, gamma):
                for routing in window.routing():
                    # A visit that needs nothing (a missing cell) still takes a word.
                    self.words.extend(routing.experts or (_NO_NEED,))
                    self.words[-1] |= _LAST


@dataclass(frozen=True, slots=True)
class Clairvoyant:
    """Knows every window to come."""

    needs: ClassVar[frozenset[str]] = frozenset({"future"})

    def forecast(self, scope: Scope, future: Future | None) -> Forecast:
        """A forecast that reads the future; ValueError without one."""
        if future is None:
            raise ValueError("a clairvoyant policy needs the future: the trace of an earlier run")
        return FutureForecast(scope, future)


@dataclass(frozen=True, slots=True)
class Farthest:
    """Belady's rule: who is needed farthest away leaves; a prefetch only displaces what is needed later than itself."""

    def order(self, pool_of: Sequence[int], forecast: Forecast, experts: int) -> VictimOrder:
        """The future itself says who leaves; ValueError where the forecast does not know it."""
        if not isinstance(forecast, FutureForecast):
            raise ValueError("evicting by the farthest next use needs a clairvoyant predictor")
        return forecast


class FutureForecast(Forecast, VictimOrder):
    """Next uses of all keys, as far as the trace tells."""

    looks_ahead = True

    def __init__(self, scope: Scope, future: Future) -> None:
        self._layers = scope.layers
        self._experts = scope.experts
        self._words = future.words
        self._read = 0
        """Words read so far, and the visits that they belong to."""
        self._visits_read = 0
        self._visits = 0
        """Visits reached in decode; the next is number `_visits`.  Those of a prefill count down to it from below."""
        self._prefill_layers = 0
        self._uses: dict[int, deque[int]] = {}
        """Visits to come that need a key, in order."""
        self._wanted: list[tuple[int, int]] = []
        """A heap of (visit, key): uses to come for which nothing was wished yet.  May hold outdated ones."""
        self._here: set[int] = set()
        """Keys on the GPU, on their way, or wished for."""
        self._leaving: list[tuple[int, int]] = []
        """A heap of (-next use, key): who is needed farthest away.  May hold outdated entries."""
        self._stuck = False
        """No prefetch finds a slot before another layer has computed."""

    def prefill_begun(self, event: PrefillBegun) -> Iterable[Wish]:
        self._prefill_layers = self._layers
        for layer, cell in enumerate(event.touched):
            for expert in cell:
                key, visit = layer * self._experts + expert, self._visits - self._layers + layer
                self._uses.setdefault(key, deque()).appendleft(visit)
                heappush(self._wanted, (visit, key))
                self._note(key)
        self._stuck = False
        return ()

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        self._read_ahead()

    def layer_reached(self, event: LayerReached) -> Iterable[Wish]:
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
        return ()

    def layer_done(self, event: LayerDone) -> Iterable[Wish]:
        self._stuck = False
        return ()

    def top_up(self, time: int, queued: int, submitted: int) -> Iterable[Wish]:
        wishes: list[Wish] = []
        while self._wanted and queued + len(wishes) < QUEUED:
            visit, key = heappop(self._wanted)
            if key not in self._here and self._next_use(key) == visit:
                self._here.add(key)
                self._note(key)
                wishes.append((key, visit, 0))
        return wishes

    def touch(self, keys: Iterable[int]) -> None:
        for key in keys:
            if key not in self._here:
                self._here.add(key)
                self._note(key)

    def forget(self, key: int) -> None:
        self._here.discard(key)
        if self._uses.get(key):
            heappush(self._wanted, (self._next_use(key), key))

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
            expert = word & _EXPERT
            if expert != _NO_NEED:
                key = visit % self._layers * self._experts + expert
                uses = self._uses.setdefault(key, deque())
                uses.append(visit)
                heappush(self._wanted, (visit, key))
                if len(uses) == 1:
                    self._note(key)
            if word & _LAST:
                visit += 1
            at += 1
        self._read, self._visits_read = at, visit
