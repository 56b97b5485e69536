"""Two forecasts in turn: the draft's, which comes early, and the target's own, of this very pass, which comes late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spmoe.policy.parts.future import Future
from spmoe.policy.parts.predictor import Predictor
from spmoe.policy.parts.scope import Scope
from spmoe.policy.sp_moe.gates import DraftGate, DraftPredictor, NextGate, next_layer_wants
from spmoe.state.events import GatePredicted


@dataclass(frozen=True, slots=True)
class DraftThenGate(DraftGate):
    """As `DraftGate`, until the target's state at one layer, through the router of the next, has the last word on that.

    What is still queued for the next layer is then dropped.  Residents among the top-k experts of each token count as
    used, with `protect`; of those that are not there, the link may fetch as many as it moves in a layer's time: a load
    that comes too late saves less than that time, and wastes a whole one if the forecast errs.  The target speaks of
    all layers, those behind the cutoff too.
    """

    needs: ClassVar[frozenset[str]] = DraftGate.needs | NextGate.needs

    def build(self, scope: Scope, future: Future | None) -> Predictor:
        """A predictor fed by `DraftPredicted` and `GatePredicted`."""
        return DraftThenGatePredictor(scope, self.critical(scope.top_k), self.group, self.protect)


class DraftThenGatePredictor(DraftPredictor):
    """Wants what the draft's forecasts name, layer by layer replaced by what the target's do."""

    def __init__(self, scope: Scope, top_n: int, group: int, protect: bool) -> None:
        super().__init__(scope, top_n, group, protect)
        self._scope = scope
        self._most = scope.pace.layer_ns // scope.pace.load_ns

    def gate_predicted(self, event: GatePredicted) -> None:
        if not any(event.forecasts):
            return
        scope = self._scope
        self.drop_layer(event.layer)
        there = self.want_absent(next_layer_wants(event, scope, scope.top_k, self._most, self.cache.resident))
        if there and self._protect:
            self.cache.touch(there)
