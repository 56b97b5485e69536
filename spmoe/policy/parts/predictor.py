"""What will be needed, learned from events, and what of it should be loaded ahead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Final, Protocol

from spmoe.policy.parts.future import Future
from spmoe.policy.parts.scope import Scope
from spmoe.state.events import (
    DraftPredicted,
    GatePredicted,
    LayerDone,
    LayerReached,
    PrefillBegun,
    RequestBegun,
    StepBegun,
    TokenDrafted,
)

_NOTHING: Final[Mapping[int, object]] = MappingProxyType({})


class Cache(Protocol):
    """What a predictor sees of the slots.  Only `touch` changes anything."""

    @property
    def resident(self) -> Mapping[int, int]:
        """The slot of each resident key."""

    @property
    def in_flight(self) -> Mapping[int, int]:
        """The slot of each key whose weights are on their way."""

    def touch(self, keys: Iterable[int]) -> None:
        """Count residents as used, in this order."""


class Predictor:
    """Observes events and owns what it wants to load; the scheduler asks when the link has room.  This base
    wants nothing.

    The methods up to `step_ended` report events, in the order of ``docs/contract.md``.
    """

    predicted_layers = 0
    """For how many leading layers the draft should report forecasts."""

    predicted_group = 1
    """How many layers make a report."""

    cache: Cache
    """Where its loads go; set by `bind`."""

    wanted: Mapping[int, object] = _NOTHING
    """Keys that should be loaded ahead and are neither resident nor in flight."""

    def bind(self, cache: Cache) -> None:
        """Called once, before the first event."""
        self.cache = cache

    def request_begun(self, event: RequestBegun) -> None:
        """A request starts."""

    def prefill_begun(self, event: PrefillBegun) -> None:
        """A prompt is about to be read."""

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        """A step starts that will draft `gamma` tokens, or about as many."""

    def draft_predicted(self, event: DraftPredicted) -> None:
        """The draft's forecasts for some layers, of one token."""

    def token_drafted(self, event: TokenDrafted, chance: int) -> None:
        """The draft proposed a token, which is accepted with that chance (/65536) if those before it are."""

    def window_closed(self, drafted: int) -> None:
        """The window holds so many drafted tokens; what the draft reads from now on lies past it."""

    def layer_reached(self, event: LayerReached) -> None:
        """The routing of a layer is known; its demand loads are queued already."""

    def gate_predicted(self, event: GatePredicted) -> None:
        """The next layer's gate, on this layer's state."""

    def layer_done(self, event: LayerDone) -> None:
        """A layer has computed."""

    def step_ended(self, known: int) -> None:
        """The window is verified; of the next one the draft has read the first `known` tokens."""

    def look_ahead(self, time: int, waiting: int, submitted: int) -> bool:
        """Called after every event, at `time`, with so many loads waiting (`wanted` included) and so many batches on
        the link; returns whether anything new is wanted."""
        return False

    def next(self, count: int) -> Sequence[int]:
        """The keys of `wanted` to load next, at most `count`, most urgent first.

        Asked only when the link has room and no demand load waits.  Those that get a slot are `discard`ed at once.
        """
        return ()

    def discard(self, key: int) -> None:
        """A key of `wanted` is on its way, or is a demand load from now on."""


class PredictorPart:
    """The part of a recipe that makes a predictor; base of all, which are frozen dataclasses."""

    __slots__ = ()

    needs: ClassVar[frozenset[str]] = frozenset()
    """The forecasts that a trace or an engine must offer; see `Recipe.needs`."""

    def critical(self, top_k: int) -> int:
        """Experts per drafted token and layer that are prefetched on the draft's forecasts; 0 where none are."""
        return 0

    def build(self, scope: Scope, future: Future | None) -> Predictor:
        """A fresh predictor for one run; `future` is for those that need it.  Raises ValueError where it lacks."""
        return Predictor()


@dataclass(frozen=True, slots=True)
class NoPredictor(PredictorPart):
    """Nothing is predicted: every load is on demand."""
