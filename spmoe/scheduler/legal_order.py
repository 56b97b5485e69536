"""The order of events that ``docs/contract.md`` allows."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from spmoe.scheduler.draft_window import DraftWindow
from spmoe.scheduler.layer import Layers
from spmoe.scheduler.loads import Loads
from spmoe.scheduler.run_ahead import RunAhead
from spmoe.state.events import (
    BatchArrived,
    BatchFailed,
    Computed,
    DraftPredicted,
    Event,
    GatePredicted,
    HostComputed,
    LayerDone,
    LayerReached,
    LeadStands,
    LinkAwaited,
    PrefillBegun,
    PrefillEnded,
    RequestBegun,
    StepBegun,
    StepEnded,
    TokenDrafted,
)


class IllegalEvent(RuntimeError):
    """An event came in an order that ``docs/contract.md`` does not allow: the driver is wrong."""


class Phase(Enum):
    """Where a driver stands between two events."""

    IDLE = "before the first request"
    READY = "between steps"
    DRAFTING = "drafting"
    PREFILL = "reading the prompt, between layers"
    VERIFY = "verifying, between layers"
    LAYER = "inside a layer"


_LEADS_TO: Final = {
    RequestBegun: Phase.READY,
    PrefillBegun: Phase.PREFILL,
    PrefillEnded: Phase.READY,
    StepBegun: Phase.DRAFTING,
    LayerReached: Phase.LAYER,
    StepEnded: Phase.READY,
}
"""The phase behind an event; behind `LayerDone` it depends on the pass, and behind all others it stays."""


class LegalOrder:
    """Where the driver stands, and which events may come there."""

    def __init__(self, layers: Layers, window: DraftWindow, ahead: RunAhead, loads: Loads) -> None:
        """Reads these, and changes none of them."""
        self.verifying = False
        """Whether the pass under way, or the last one, verifies a window; else it reads a prompt."""
        self._layers = layers
        self._window = window
        self._ahead = ahead
        self._loads = loads
        self._phase = Phase.IDLE
        self._time = 0
        self._may_prefill = False
        self._legal: dict[type[Event], Callable[[Any], bool]] = {
            RequestBegun: self._request_begun,
            PrefillBegun: self._prefill_begun,
            PrefillEnded: self._prefill_ended,
            StepBegun: self._step_begun,
            DraftPredicted: self._drafted,
            TokenDrafted: self._drafted,
            LayerReached: self._layer_reached,
            GatePredicted: self._gate_predicted,
            Computed: self._computed,
            HostComputed: self._host_computed,
            LayerDone: self._layer_done,
            BatchArrived: self._batch_arrived,
            BatchFailed: self._batch_failed,
            LinkAwaited: self._link_awaited,
            LeadStands: self._lead_stands,
            StepEnded: self._step_ended,
        }

    def take(self, event: Event) -> None:
        """Go on to where the event leads; raises IllegalEvent where it does not belong here, or time runs backwards."""
        kind = type(event)
        if event.time < self._time:
            raise IllegalEvent(f"time ran backwards from {self._time} ns: {event}")
        if not self._legal[kind](event):
            raise IllegalEvent(
                f"not allowed {self._phase.value} (next layer {self._layers.next}, {self._window.drafted} of "
                f"{self._window.gamma} tokens drafted): {event}"
            )
        self._time = event.time
        if kind is LayerDone:
            self._phase = Phase.VERIFY if self.verifying else Phase.PREFILL
        elif kind in _LEADS_TO:
            self._phase = _LEADS_TO[kind]
            if kind is not LayerReached:
                self._may_prefill = kind is RequestBegun
                self.verifying = kind is StepBegun or (self.verifying and kind is not PrefillBegun)

    def _request_begun(self, event: RequestBegun) -> bool:
        return self._phase is Phase.IDLE or self._phase is Phase.READY

    def _prefill_begun(self, event: PrefillBegun) -> bool:
        return self._phase is Phase.READY and self._may_prefill and event.tokens > 0

    def _prefill_ended(self, event: PrefillEnded) -> bool:
        return self._phase is Phase.PREFILL and self._layers.passed

    def _step_begun(self, event: StepBegun) -> bool:
        return self._phase is Phase.READY and event.limit >= 0

    def _drafted(self, event: DraftPredicted | TokenDrafted) -> bool:
        if self._ahead.granted is not None:
            return self._ahead.expects(event)
        return self._phase is Phase.DRAFTING and self._window.expects(event)

    def _layer_reached(self, event: LayerReached) -> bool:
        if self._phase is Phase.DRAFTING:
            between = self._window.closed
        else:
            between = self._phase is Phase.VERIFY or self._phase is Phase.PREFILL
        return between and event.layer == self._layers.next and not self._layers.passed

    def _gate_predicted(self, event: GatePredicted) -> bool:
        return self._phase is Phase.LAYER and event.layer == self._layers.next and not self._layers.passed

    def _computed(self, event: Computed) -> bool:
        return self._phase is Phase.LAYER and self._layers.expects_computed(event)

    def _host_computed(self, event: HostComputed) -> bool:
        return (
            self._phase is Phase.LAYER
            and self._layers.expects_from_cpu(event)
            and event.started <= event.ended <= event.time
        )

    def _layer_done(self, event: LayerDone) -> bool:
        return (
            self._phase is Phase.LAYER
            and event.layer == self._layers.next - 1
            and self._layers.complete
            and self._ahead.granted is None
        )

    def _batch_arrived(self, event: BatchArrived) -> bool:
        return event.batch in self._loads.submitted and event.started <= event.ended <= event.time

    def _batch_failed(self, event: BatchFailed) -> bool:
        return event.batch in self._loads.submitted

    def _link_awaited(self, event: LinkAwaited) -> bool:
        return (
            self._phase is Phase.LAYER
            and self.verifying
            and event.layer == self._layers.next - 1
            and self._ahead.granted is None
        )

    def _lead_stands(self, event: LeadStands) -> bool:
        ahead = self._ahead
        verified = self._phase is Phase.VERIFY and self._layers.passed
        return verified and not ahead.known and 0 < event.tokens < ahead.read

    def _step_ended(self, event: StepEnded) -> bool:
        verified = self._phase is Phase.VERIFY and self._layers.passed
        return verified and 0 <= event.accepted <= self._window.gamma
