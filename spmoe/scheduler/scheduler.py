"""The scheduler: events in, commands out.

A deterministic state machine.  It knows no clock, no device and no randomness: the same events give the same commands,
which is what makes a run in the simulator and a run on a GPU comparable, and a log of either repeatable.  The order of
events is tabled in ``docs/contract.md``; any other order raises `IllegalEvent`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from spmoe.policy.parts.future import Future
from spmoe.policy.parts.predictor import Predictor
from spmoe.policy.parts.scope import Scope
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import recipe as find_recipe
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.draft_window import DraftWindow
from spmoe.scheduler.layer import Layers
from spmoe.scheduler.legal_order import LegalOrder
from spmoe.scheduler.loads import Loads
from spmoe.scheduler.run_ahead import RunAhead
from spmoe.state.commands import Command, DraftAhead, LayerPlan, Speculate, Submit, Verify
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
from spmoe.state.residency import Pool, Residency

_FREES_NOTHING: Final = frozenset({HostComputed, LinkAwaited})
"""Events after which no load finds a slot that it did not find before."""


class Scheduler:
    """Decides what to load, when, into which slot, and what to compute next; never acts.

    Each handler updates the objects that its event concerns, and reports it to the predictor.
    """

    def __init__(self, config: SchedulerConfig, future: Future | None = None, recipe: Recipe | None = None) -> None:
        """`future` is for recipes that need it, `recipe` the one that `config` names if the registry does not have it.

        Raises InputError for an unknown recipe, and where the slots do not suffice for its placement.
        """
        recipe = self.recipe = find_recipe(config.recipe) if recipe is None else recipe
        self.config = config
        placement, shape = recipe.placement, config.shape
        pool_of = placement.pool_of(shape)
        self.predictor = recipe.predictor.build(Scope(*shape, config.cutoff, recipe.horizon, config.pace), future)
        self.residency = Residency(
            placement.pools(shape, config.slots),
            pool_of,
            recipe.eviction.order(pool_of, self.predictor, config.experts),
            Pool(config.slots - placement.buffers, placement.buffers),
        )
        self.predictor.bind(self.residency)
        self.loads = Loads(recipe.io, config.pace, config.depth, self.residency, self.predictor)
        self._window = DraftWindow(config, recipe)
        self._ahead = RunAhead(recipe.speculation, config.gamma, config.layers, config.pace)
        self._layers = Layers(config, recipe, self.residency, self.loads)
        self._order = LegalOrder(self._layers, self._window, self._ahead, self.loads)
        self._keys = config.layers * config.experts
        self._handlers: dict[type[Event], Callable[..., Command | None]] = {
            RequestBegun: self._request_begun,
            PrefillBegun: self._prefill_begun,
            PrefillEnded: self._prefill_ended,
            StepBegun: self._step_begun,
            DraftPredicted: self._draft_predicted,
            TokenDrafted: self._token_drafted,
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

    def handle(self, event: Event) -> tuple[Command, ...]:
        """Take in one event; returns what to do now: any number of `Submit`, then at most one reply.

        Raises IllegalEvent where the event does not belong here or time ran backwards, and TransferFailed where a batch
        failed for the second time.
        """
        time, kind, loads = event.time, type(event), self.loads
        self._order.take(event)
        reply = self._handlers[kind](event)
        predictor = self.predictor
        waiting = len(loads.demands) + len(loads.preloads) + len(predictor.wanted)
        wants_more = predictor.look_ahead(time, waiting, len(loads.submitted))
        if wants_more or (waiting and kind not in _FREES_NOTHING):
            submits = loads.submit(time)
            if submits:
                return tuple(submits) if reply is None else (*submits, reply)
        return () if reply is None else (reply,)

    # Requests and steps

    def _request_begun(self, event: RequestBegun) -> None:
        initial = self.recipe.placement.initial(event.popular, self.config.shape, self.config.slots)
        self.residency.fix(self.recipe.admission.fixed(initial))
        self.loads.preload(sorted(initial))
        self.predictor.request_begun(event)

    def _prefill_begun(self, event: PrefillBegun) -> None:
        self._layers.begin_pass(event.tokens)
        self.predictor.prefill_begun(event)

    def _prefill_ended(self, event: PrefillEnded) -> None:
        """Nothing changes but the phase."""

    def _step_begun(self, event: StepBegun) -> Speculate:
        window, predictor = self._window, self.predictor
        # Where every expert is resident or in flight, forecasts would cost time for nothing.
        here = len(self.residency.resident) + len(self.residency.in_flight)
        layers = 0 if here == self._keys else predictor.predicted_layers
        predictor.step_begun(event, window.expected(event.limit))
        self._ahead.step_begun()
        window.begin(event.time, event.limit, layers)
        if window.closed:
            self._window_closed()
        return Speculate(window.gamma, layers, predictor.predicted_group)

    def _draft_predicted(self, event: DraftPredicted) -> None:
        if self._ahead.granted is not None:
            self._ahead.draft_predicted()
        else:
            self._window.draft_predicted(len(event.forecasts))
        self.predictor.draft_predicted(event)

    def _token_drafted(self, event: TokenDrafted) -> Verify | None:
        if self._ahead.granted is not None:
            self._ahead.token_drafted()
            self.predictor.token_drafted(event, self._window.record_confidence(event.prob))
            return None
        chance = self._window.record_confidence(event.prob)
        self.predictor.token_drafted(event, chance)
        verify = self._window.token_drafted(event.time, chance)
        if self._window.closed:
            self._window_closed()
        return verify

    def _window_closed(self) -> None:
        window = self._window
        self._layers.begin_pass(window.gamma + 1)
        self._ahead.window_closed(window.excess)
        self.predictor.window_closed(window.gamma)

    def _step_ended(self, event: StepEnded) -> None:
        self._window.end(event.time, event.accepted, self._ahead.known)
        self.predictor.step_ended(self._ahead.known)

    def _link_awaited(self, event: LinkAwaited) -> DraftAhead | None:
        ahead = self._ahead
        if ahead.exhausted:
            return None
        lands = self._layers.next_landing()
        return None if lands is None else ahead.grant(event.time, self._window.gamma, lands)

    def _lead_stands(self, event: LeadStands) -> None:
        self._ahead.known = event.tokens

    # Layers

    def _layer_reached(self, event: LayerReached) -> LayerPlan:
        plan = self._layers.reach(event)
        self.predictor.layer_reached(event)
        return plan

    def _gate_predicted(self, event: GatePredicted) -> None:
        self.predictor.gate_predicted(event)

    def _computed(self, event: Computed) -> None:
        self._layers.computed(event)

    def _host_computed(self, event: HostComputed) -> None:
        self._layers.computed_on_cpu(event.expert)

    def _layer_done(self, event: LayerDone) -> None:
        self._layers.close()
        if event.waits and self._order.verifying:
            self._window.stalled(sum([end - start for start, end in event.waits]))
        self.predictor.layer_done(event)

    # Transfers

    def _batch_arrived(self, event: BatchArrived) -> None:
        self.loads.arrived(event.batch, event.ended)
        if len(self.residency.resident) == self._keys:
            # All experts are resident, and none will ever be evicted: there is nothing to predict any more.
            self.predictor = self.loads.predictor = Predictor()

    def _batch_failed(self, event: BatchFailed) -> Submit:
        return self.loads.failed(event.batch)
