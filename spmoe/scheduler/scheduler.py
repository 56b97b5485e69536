"""The scheduler: events in, commands out.

A deterministic state machine.  It knows no clock, no device and no randomness: the same events give the same commands,
which is what makes a run in the simulator and a run on a GPU comparable, and a log of either repeatable.  The order of
events is tabled in ``docs/contract.md``; any other order raises `IllegalEvent`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

from spmoe.policy.parts.future import Future
from spmoe.policy.parts.predictor import Predictor
from spmoe.policy.parts.scope import Scope
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import recipe as find_recipe
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.draft_window import DraftWindow
from spmoe.scheduler.layer import Layers
from spmoe.scheduler.loads import Loads
from spmoe.scheduler.phase import IllegalEvent, Phase
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

    Each handler checks that its event is legal, updates the objects that it concerns, and reports it to the predictor.
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
        self._keys = config.layers * config.experts
        self._time = 0
        self._phase = Phase.IDLE
        self._pass = Phase.VERIFY
        """What the pass under way does, or the last one did: `Phase.PREFILL` or `Phase.VERIFY`."""
        self._pass_tokens = 0
        self._may_prefill = False
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
        time, loads = event.time, self.loads
        if time < self._time:
            raise IllegalEvent(f"time ran backwards from {self._time} ns: {event}")
        reply = self._handlers[type(event)](event)
        self._time = time
        waiting = loads.waiting
        wants_more = self.predictor.look_ahead(time, waiting, len(loads.submitted))
        if wants_more or (waiting and type(event) not in _FREES_NOTHING):
            submits = loads.submit(time)
            if submits:
                return tuple(submits) if reply is None else (*submits, reply)
        return () if reply is None else (reply,)

    # Requests and steps

    def _request_begun(self, event: RequestBegun) -> None:
        if self._phase not in (Phase.IDLE, Phase.READY):
            self._refuse(event)
        self._phase = Phase.READY
        self._may_prefill = True
        initial = self.recipe.placement.initial(event.popular, self.config.shape, self.config.slots)
        self.residency.fix(self.recipe.admission.fixed(initial))
        self.loads.preload(sorted(initial))
        self.predictor.request_begun(event)

    def _prefill_begun(self, event: PrefillBegun) -> None:
        if not (self._phase is Phase.READY and self._may_prefill and event.tokens > 0):
            self._refuse(event)
        self._may_prefill = False
        self._begin_pass(Phase.PREFILL, event.tokens)
        self.predictor.prefill_begun(event)

    def _prefill_ended(self, event: PrefillEnded) -> None:
        if not (self._phase is Phase.PREFILL and self._layers.next == self.config.layers):
            self._refuse(event)
        self._phase = Phase.READY

    def _step_begun(self, event: StepBegun) -> Speculate:
        if not (self._phase is Phase.READY and event.limit >= 0):
            self._refuse(event)
        self._may_prefill = False
        self._phase = Phase.DRAFTING
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
            if not self._ahead.expects(event):
                self._refuse(event)
            self._ahead.draft_predicted()
        else:
            if not (self._phase is Phase.DRAFTING and self._window.expects(event)):
                self._refuse(event)
            self._window.draft_predicted(len(event.forecasts))
        self.predictor.draft_predicted(event)

    def _token_drafted(self, event: TokenDrafted) -> Verify | None:
        if self._ahead.granted is not None:
            if not self._ahead.expects(event):
                self._refuse(event)
            self._ahead.token_drafted()
            self.predictor.token_drafted(event, self._window.record_confidence(event.prob))
            return None
        if not (self._phase is Phase.DRAFTING and self._window.expects(event)):
            self._refuse(event)
        chance = self._window.record_confidence(event.prob)
        self.predictor.token_drafted(event, chance)
        verify = self._window.token_drafted(event.time, chance)
        if self._window.closed:
            self._window_closed()
        return verify

    def _window_closed(self) -> None:
        window = self._window
        self._pass_tokens = window.gamma + 1
        self._ahead.window_closed(window.excess)
        self.predictor.window_closed(window.gamma)

    def _step_ended(self, event: StepEnded) -> None:
        if not (
            self._phase is Phase.VERIFY
            and self._layers.next == self.config.layers
            and 0 <= event.accepted <= self._window.gamma
        ):
            self._refuse(event)
        self._phase = Phase.READY
        self._window.end(event.time, event.accepted, self._ahead.known)
        self.predictor.step_ended(self._ahead.known)

    def _link_awaited(self, event: LinkAwaited) -> DraftAhead | None:
        ahead = self._ahead
        if not (
            self._phase is Phase.LAYER
            and self._pass is Phase.VERIFY
            and event.layer == self._layers.next - 1
            and ahead.granted is None
        ):
            self._refuse(event)
        if ahead.exhausted:
            return None
        lands = self._layers.next_landing()
        return None if lands is None else ahead.grant(event.time, self._window.gamma, lands)

    def _lead_stands(self, event: LeadStands) -> None:
        ahead = self._ahead
        if not (
            self._phase is Phase.VERIFY
            and self._layers.next == self.config.layers
            and not ahead.known
            and 0 < event.tokens < ahead.read
        ):
            self._refuse(event)
        ahead.known = event.tokens

    # Layers

    def _begin_pass(self, phase: Phase, tokens: int) -> None:
        self._phase = self._pass = phase
        self._pass_tokens = tokens
        self._layers.next = 0

    def _layer_reached(self, event: LayerReached) -> LayerPlan:
        if self._phase is Phase.DRAFTING and self._window.drafted == self._window.gamma:
            self._begin_pass(Phase.VERIFY, self._pass_tokens)
        if not (self._phase is self._pass and event.layer == self._layers.next < self.config.layers):
            self._refuse(event)
        plan = self._layers.reach(event, self._pass_tokens)
        self._phase = Phase.LAYER
        self.predictor.layer_reached(event)
        return plan

    def _gate_predicted(self, event: GatePredicted) -> None:
        if not (self._phase is Phase.LAYER and event.layer == self._layers.next < self.config.layers):
            self._refuse(event)
        self.predictor.gate_predicted(event)

    def _computed(self, event: Computed) -> None:
        if not (self._phase is Phase.LAYER and self._layers.expects_computed(event)):
            self._refuse(event)
        self._layers.computed(event)

    def _host_computed(self, event: HostComputed) -> None:
        if not (
            self._phase is Phase.LAYER
            and self._layers.expects_from_cpu(event)
            and event.started <= event.ended <= event.time
        ):
            self._refuse(event)
        self._layers.computed_on_cpu(event.expert)

    def _layer_done(self, event: LayerDone) -> None:
        if not (
            self._phase is Phase.LAYER
            and event.layer == self._layers.next - 1
            and self._layers.complete
            and self._ahead.granted is None
        ):
            self._refuse(event)
        self._layers.close()
        self._phase = self._pass
        if self._pass is Phase.VERIFY:
            self._window.stalled(sum(end - start for start, end in event.waits))
        self.predictor.layer_done(event)

    # Transfers

    def _batch_arrived(self, event: BatchArrived) -> None:
        if not (event.batch in self.loads.submitted and event.started <= event.ended <= event.time):
            self._refuse(event)
        self.loads.arrived(event.batch, event.ended)
        if len(self.residency.resident) == self._keys:
            # All experts are resident, and none will ever be evicted: there is nothing to predict any more.
            self.predictor = self.loads.predictor = Predictor()

    def _batch_failed(self, event: BatchFailed) -> Submit:
        if event.batch not in self.loads.submitted:
            self._refuse(event)
        return self.loads.failed(event.batch)

    def _refuse(self, event: Event) -> NoReturn:
        raise IllegalEvent(
            f"not allowed {self._phase.value} (next layer {self._layers.next}, {self._window.drafted} of "
            f"{self._window.gamma} tokens drafted): {event}"
        )
