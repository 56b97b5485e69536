"""The order of events that ``docs/contract.md`` allows."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

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


_IDLE, _READY, _DRAFTING, _PREFILL, _VERIFY, _LAYER = Phase
"""Phases by names of this module: on Python 3.11, looking one up in its enum takes longer than comparing it."""


class LegalOrder:
    """Where the driver stands, and which events may come there.

    A method per kind of event says whether it is legal, and goes on to the phase that it leads to, if it is.
    """

    def __init__(self, layers: Layers, window: DraftWindow, ahead: RunAhead, loads: Loads) -> None:
        """Reads these, and changes none of them."""
        self.verifying = False
        """Whether the pass under way, or the last one, verifies a window; else it reads a prompt."""
        self._layers = layers
        self._window = window
        self._ahead = ahead
        self._loads = loads
        self._phase = _IDLE
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
        if event.time < self._time:
            raise IllegalEvent(f"time ran backwards from {self._time} ns: {event}")
        if not self._legal[type(event)](event):
            raise IllegalEvent(
                f"not allowed {self._phase.value} (next layer {self._layers.next}, {self._window.drafted} of "
                f"{self._window.gamma} tokens drafted): {event}"
            )
        self._time = event.time

    def _go_on(self, phase: Phase) -> bool:
        """The event is legal, and leads to that phase."""
        self._phase = phase
        return True

    def _request_begun(self, event: RequestBegun) -> bool:
        if self._phase is not _IDLE and self._phase is not _READY:
            return False
        self._may_prefill = True
        return self._go_on(_READY)

    def _prefill_begun(self, event: PrefillBegun) -> bool:
        if self._phase is not _READY or not self._may_prefill or event.tokens <= 0:
            return False
        self._may_prefill = self.verifying = False
        return self._go_on(_PREFILL)

    def _prefill_ended(self, event: PrefillEnded) -> bool:
        return self._phase is _PREFILL and self._layers.passed and self._go_on(_READY)

    def _step_begun(self, event: StepBegun) -> bool:
        if self._phase is not _READY or event.limit < 0:
            return False
        self._may_prefill, self.verifying = False, True
        return self._go_on(_DRAFTING)

    def _drafted(self, event: DraftPredicted | TokenDrafted) -> bool:
        if self._ahead.granted is not None:
            return self._ahead.expects(event)
        return self._phase is _DRAFTING and self._window.expects(event)

    def _layer_reached(self, event: LayerReached) -> bool:
        phase = self._phase
        between = self._window.closed if phase is _DRAFTING else phase is _VERIFY or phase is _PREFILL
        return between and event.layer == self._layers.next and not self._layers.passed and self._go_on(_LAYER)

    def _gate_predicted(self, event: GatePredicted) -> bool:
        return self._phase is _LAYER and event.layer == self._layers.next and not self._layers.passed

    def _computed(self, event: Computed) -> bool:
        return self._phase is _LAYER and self._layers.expects_computed(event)

    def _host_computed(self, event: HostComputed) -> bool:
        return (
            self._phase is _LAYER
            and self._layers.expects_from_cpu(event)
            and event.started <= event.ended <= event.time
        )

    def _layer_done(self, event: LayerDone) -> bool:
        return (
            self._phase is _LAYER
            and event.layer == self._layers.next - 1
            and self._layers.complete
            and self._ahead.granted is None
            and self._go_on(_VERIFY if self.verifying else _PREFILL)
        )

    def _batch_arrived(self, event: BatchArrived) -> bool:
        return event.batch in self._loads.submitted and event.started <= event.ended <= event.time

    def _batch_failed(self, event: BatchFailed) -> bool:
        return event.batch in self._loads.submitted

    def _link_awaited(self, event: LinkAwaited) -> bool:
        return (
            self._phase is _LAYER
            and self.verifying
            and event.layer == self._layers.next - 1
            and self._ahead.granted is None
        )

    def _lead_stands(self, event: LeadStands) -> bool:
        ahead = self._ahead
        verified = self._phase is _VERIFY and self._layers.passed
        return verified and not ahead.known and 0 < event.tokens < ahead.read

    def _step_ended(self, event: StepEnded) -> bool:
        verified = self._phase is _VERIFY and self._layers.passed
        return verified and 0 <= event.accepted <= self._window.gamma and self._go_on(_READY)
