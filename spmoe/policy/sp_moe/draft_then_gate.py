"""Two forecasts in turn: the draft's, which comes early, and the target's own, of this very pass, which comes late."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from spmoe.policy.parts.horizon import NextLayer
from spmoe.policy.sp_moe.gates import DraftGate, NextGate, Scope
from spmoe.state.events import DraftPredicted, GatePredicted, StepBegun
from spmoe.state.forecast import Forecast, Wish

if TYPE_CHECKING:
    from spmoe.policy.oracle.clairvoyant import Future


@dataclass(frozen=True, slots=True)
class DraftThenGate(DraftGate):
    """As `DraftGate`, until the target's state at one layer, through the router of the next, has the last word on that.

    What is still queued for the next layer is then dropped.  Residents among the top-k experts of each token count as
    used, with `protect`; of those that are not there, the link may fetch as many as it moves in a layer's time: a load
    that comes too late saves less than that time, and wastes a whole one if the forecast errs.  The target speaks of
    all layers, those behind the cutoff too.
    """

    needs: ClassVar[frozenset[str]] = DraftGate.needs | NextGate.needs

    def forecast(self, scope: Scope, future: Future | None) -> Forecast:
        """A forecast fed by `DraftPredicted` and `GatePredicted`."""
        gate = NextGate(most=scope.pace.layer_ns // scope.pace.load_ns)
        return _RefinedForecast(
            DraftGate.forecast(self, scope, future), gate.forecast(scope._replace(horizon=NextLayer()), future)
        )


class _RefinedForecast(Forecast):
    """Hands each event to the forecast that it is for."""

    expires = True
    refines = True

    def __init__(self, draft: Forecast, gate: Forecast) -> None:
        self.protects = draft.protects
        self.predicted_layers, self.predicted_group = draft.predicted_layers, draft.predicted_group
        self.most = gate.most
        self._draft, self._gate = draft, gate

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        self._draft.step_begun(event, gamma)

    def draft_predicted(self, event: DraftPredicted) -> Iterable[Wish]:
        return self._draft.draft_predicted(event)

    def gate_predicted(self, event: GatePredicted) -> Iterable[Wish]:
        return self._gate.gate_predicted(event)
