"""The scheduler: events in, commands out.

A deterministic state machine.  It knows no clock, no device and no randomness: the same events give the same commands,
which is what makes a run in the simulator and a run on a GPU comparable, and a log of either repeatable.  The order of
events is tabled in ``docs/contract.md``; any other order raises `IllegalEvent`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from enum import Enum
from typing import NoReturn

from spmoe.policy.foresight.draft_length import Agreement, DraftLength
from spmoe.policy.foresight.use_rates import ONE
from spmoe.policy.oracle.clairvoyant import Future
from spmoe.policy.parts.admission import ByValue, InitialOnly
from spmoe.policy.parts.cpu_split import Late, Needed, split
from spmoe.policy.parts.io_plan import Planner
from spmoe.policy.parts.miss_action import CheaperOf, Fetch, HostCompute, Split
from spmoe.policy.registry import recipe as find_recipe
from spmoe.policy.sp_moe.gates import Scope
from spmoe.scheduler.config import SchedulerConfig
from spmoe.state.commands import Command, DraftAhead, LayerPlan, Load, Purpose, Speculate, Submit, Verify
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
from spmoe.state.forecast import Forecast, Wish
from spmoe.state.residency import Pool, Residency
from spmoe.state.transfers import TransferQueue


class IllegalEvent(RuntimeError):
    """An event came in an order that ``docs/contract.md`` does not allow: the driver is wrong."""


class TransferFailed(RuntimeError):
    """A batch failed twice."""


class Phase(Enum):
    """Where a driver stands between two events."""

    IDLE = "before the first request"
    READY = "between steps"
    DRAFTING = "drafting"
    PREFILL = "reading the prompt, between layers"
    VERIFY = "verifying, between layers"
    LAYER = "inside a layer"


class Scheduler:
    """Decides what to load, when, into which slot, and what to compute next; never acts.

    It dispatches to four parts: `Residency` (who is where), `TransferQueue` (what waits and what is on the link),
    `Planner` (what travels together) and `Forecast` (what will be needed).
    """

    def __init__(self, config: SchedulerConfig, future: Future | None = None) -> None:
        """`future` is for recipes that need it.

        Raises:
            InputError: the recipe is unknown, or the slots do not suffice for its placement.
        """
        recipe = find_recipe(config.recipe)
        self.config = config
        self.recipe = recipe
        placement, shape = recipe.placement, config.shape
        pool_of = placement.pool_of(shape)
        self.forecast = recipe.predictor.forecast(Scope(*shape, config.cutoff, recipe.horizon, config.pace), future)
        self.residency = Residency(
            placement.pools(shape, config.slots),
            pool_of,
            recipe.eviction.order(pool_of, self.forecast, config.experts),
            Pool(config.slots - placement.buffers, placement.buffers),
        )
        self.queue = TransferQueue(config.depth)
        self.planner = Planner(recipe.io, config.pace)
        # Asked after every event, hence at hand.
        self._looks_ahead, self._top_up = self.forecast.looks_ahead, self.forecast.top_up
        self._has_buffers = placement.buffers > 0
        self._demands, self._prefetches = self.queue.demands, self.queue.prefetches
        self._submitted, self._depth = self.queue.submitted, self.queue.depth
        miss = self._miss = recipe.miss
        self._fetch_only = isinstance(miss, Fetch) or (isinstance(miss, Split) and not config.pace.host_ns)
        self._only_initial = isinstance(recipe.admission, InitialOnly)
        self._by_value = isinstance(recipe.admission, ByValue)
        self._gamma_limit = recipe.speculation.gamma(config.gamma)
        self._keys = config.layers * config.experts
        self._time = 0
        self._phase = Phase.IDLE
        self._between_layers = Phase.VERIFY
        self._may_prefill = False
        self._agreement = Agreement()
        self._length = (
            DraftLength(shape, config.slots, self._gamma_limit, config.pace, self._agreement)
            if config.chooses
            else None
        )
        self._said: list[int | None] = []
        """How sure the draft was of the tokens that it has drafted, from the window's first one on."""
        self._standing = ONE
        """The probability (/`ONE`) that all drafted tokens stand that the window holds so far."""
        self._began = 0
        """When the step under way did."""
        self._gamma = 0
        """Drafted tokens that the window holds, or at most will hold."""
        self._window = 0
        """Tokens of the pass under way."""
        self._drafted = self._predicted = 0
        self._to_predict = 0
        """For how many leading layers the draft was asked for forecasts."""
        self._lead_limit = recipe.speculation.lead(config.gamma)
        self._lead_piece = recipe.speculation.piece
        self._lead = 0
        """Tokens that the draft has read from the window's last one on."""
        self._lead_layer = 0
        """The layer that it comes to next, on the token behind them."""
        self._granted: DraftAhead | None = None
        """What it was told to do and has not done yet."""
        self._stands = 0
        """Tokens of the next window that it has read already."""
        self._link_since = 0
        """Since when the link has worked on the first batch of those submitted."""
        self._next_layer = 0
        self._on_host: set[int] = set()
        """Experts of the open layer that the CPU still computes."""
        self._host_until = 0
        """When it is through with what it was given in a split, if nothing delays it."""
        self._batches = 0
        self._moved = True
        """Whether what is queued may find a slot that it did not find before: not where an event changes neither who is
        there nor who may go."""
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

        Raises:
            IllegalEvent: the event does not belong here, or time ran backwards.
            TransferFailed: a batch failed for the second time.
        """
        time = event.time
        if time < self._time:
            raise IllegalEvent(f"time ran backwards from {self._time} ns: {event}")
        self._moved = True
        reply = self._handlers[type(event)](event)
        self._time = time
        if self._looks_ahead:
            wishes = self._top_up(time, len(self._demands) + len(self._prefetches), len(self._submitted))
            if wishes:
                self._moved = True
                self._wish(wishes, Purpose.PREFETCH)
        if self._moved and (self._demands or self._prefetches) and len(self._submitted) < self._depth:
            commands: list[Command] = self._submissions()
            if reply is not None:
                commands.append(reply)
            return tuple(commands)
        return () if reply is None else (reply,)

    # Requests and steps

    def _request_begun(self, event: RequestBegun) -> None:
        if self._phase not in (Phase.IDLE, Phase.READY):
            self._refuse(event)
        self._phase = Phase.READY
        self._may_prefill = True
        initial = self.recipe.placement.initial(event.popular, self.config.shape, self.config.slots)
        self.residency.fix(initial if self._only_initial else ())
        self._wish([(key, event.time, 0) for key in sorted(initial)], Purpose.PRELOAD)
        self._wish(self.forecast.request_begun(event), Purpose.PREFETCH)

    def _prefill_begun(self, event: PrefillBegun) -> None:
        if not (self._phase is Phase.READY and self._may_prefill and event.tokens > 0):
            self._refuse(event)
        self._may_prefill = False
        self._window = event.tokens
        self._enter_layers(Phase.PREFILL)
        self._wish(self.forecast.prefill_begun(event), Purpose.PREFETCH)

    def _prefill_ended(self, event: PrefillEnded) -> None:
        if not (self._phase is Phase.PREFILL and self._next_layer == self.config.layers):
            self._refuse(event)
        self._phase = Phase.READY

    def _step_begun(self, event: StepBegun) -> Speculate:
        if not (self._phase is Phase.READY and event.limit >= 0):
            self._refuse(event)
        self._may_prefill = False
        self._phase = Phase.DRAFTING
        self._began = event.time
        known = len(self._said)
        most = min(self._gamma_limit, event.limit)
        self._predicted = self._stands = self._lead_layer = 0
        self.forecast.step_begun(event, most if self._length is None else min(most, self._gamma))
        if self._length is not None:
            most = self._enough(self._length, most)
        self._gamma, self._drafted = most, min(known, most)
        if known >= most:
            self._settle(event.time, most, known)
        # Where every expert is there or on its way, forecasts would cost time for nothing.
        here = len(self.residency.resident) + len(self.residency.in_flight)
        self._to_predict = 0 if here == self._keys else self.forecast.predicted_layers
        return Speculate(self._gamma, self._to_predict, self.forecast.predicted_group)

    def _draft_predicted(self, event: DraftPredicted) -> None:
        granted = self._granted
        if granted is not None:
            if not (
                event.token == granted.token
                and event.layer == granted.first
                and len(event.forecasts) == granted.until - granted.first
            ):
                self._refuse(event)
            self._lead_layer = granted.until
            if granted.until < self.config.layers:
                self._granted = None
            else:
                self._granted = DraftAhead(granted.token, granted.until, granted.until)
        elif (
            self._phase is Phase.DRAFTING
            and event.token == self._drafted < self._gamma
            and event.layer == self._predicted < self._to_predict
        ):
            self._predicted += len(event.forecasts)
        else:
            self._refuse(event)
        wishes = self.forecast.draft_predicted(event)
        if wishes:
            self._wish(wishes, Purpose.PREFETCH)

    def _token_drafted(self, event: TokenDrafted) -> Verify | None:
        granted = self._granted
        if granted is not None:
            if event.token != granted.token or granted.first < self.config.layers:
                self._refuse(event)
            self._lead += 1
            self._lead_layer = 0
            self._granted = None
            self._heard(event)
            return None
        if not (
            self._phase is Phase.DRAFTING
            and event.token == self._drafted < self._gamma
            and self._predicted == self._to_predict
        ):
            self._refuse(event)
        self._drafted += 1
        self._predicted = 0
        chance = self._heard(event)
        if self._length is not None:
            return self._draft_on(self._length, event.time, chance)
        if self._drafted == self._gamma:
            self._settle(event.time, self._gamma, self._drafted)
        return None

    def _heard(self, event: TokenDrafted) -> int:
        """The draft has told how sure it is of a token; returns the chance that it stands where those before it do."""
        chance = self._agreement.chance(event.prob)
        self._agreement.drawn(event.prob)
        self._said.append(event.prob)
        self.forecast.token_drafted(event, chance)
        return chance

    def _enough(self, length: DraftLength, most: int) -> int:
        """How many tokens to draft at most: `most`, unless what is drafted already suffices."""
        length.round_begun(most)
        self._standing = ONE
        for drafted, said in enumerate(self._said[:most]):
            standing = self._standing * self._agreement.chance(said) // ONE
            if not length.takes(drafted, standing):
                return drafted
            self._standing = standing
        known = min(len(self._said), most)
        return most if length.goes_on(known, self._standing) else known

    def _draft_on(self, length: DraftLength, time: int, chance: int) -> Verify | None:
        """Whether the token just drafted belongs into the window, and another one behind it."""
        drafted, standing = self._drafted, self._standing * chance // ONE
        window = drafted if length.takes(drafted - 1, standing) else drafted - 1
        if window == drafted:
            self._standing = standing
            if length.goes_on(drafted, standing):
                return None
        enough = window < self._gamma
        self._gamma = self._drafted = window
        self._settle(time, window, drafted)
        return Verify(window) if enough else None

    def _settle(self, time: int, window: int, drafted: int) -> None:
        """The window holds so many of the tokens drafted."""
        self._window = window + 1
        self._lead = drafted - window
        self.forecast.settled(window)
        if self._length is not None:
            self._length.drafted(time - self._began, window)

    def _step_ended(self, event: StepEnded) -> None:
        if not (
            self._phase is Phase.VERIFY
            and self._next_layer == self.config.layers
            and 0 <= event.accepted <= self._gamma
        ):
            self._refuse(event)
        self._phase = Phase.READY
        for said, stood in zip(self._said, [True] * event.accepted + [False], strict=False):
            if event.accepted < self._gamma or stood:
                self._agreement.learn(said, stood)
        if self._length is not None:
            self._length.round_ended(event.time - self._began, event.accepted)
        self._said = self._said[self._window : self._window + self._stands]
        self.forecast.step_ended(self._stands)

    def _link_awaited(self, event: LinkAwaited) -> DraftAhead | None:
        if not (
            self._phase is Phase.LAYER
            and self._between_layers is Phase.VERIFY
            and event.layer == self._next_layer - 1
            and self._granted is None
        ):
            self._refuse(event)
        self._moved = False
        if self._lead >= self._lead_limit or not self.residency.resident.keys().isdisjoint(self.residency.pinned):
            return None
        lands = self._next_landing()
        if lands is None:
            return None
        # The draft is not to be interrupted: it may go on where it is through before there is something to compute.
        first, layers = self._lead_layer, self.config.layers
        end = min(first + self._lead_piece, layers)
        if event.time + self.config.pace.draft_ns * (end - first) // layers > lands:
            return None
        self._granted = DraftAhead(self._gamma + self._lead, first, end)
        return self._granted

    def _next_landing(self) -> int | None:
        """When the open layer can go on: a load of it has arrived, or the CPU is through with all of its own; None
        where it waits for neither.  By what the policy may reckon with."""
        if self._fetch_only:
            return next(iter(self._arrivals()), (None, None))[1]
        pinned = self.residency.pinned
        lands = self._host_until if self._on_host else None
        for key, arrives in self._arrivals():
            if key in pinned:
                return arrives if lands is None or arrives < lands else lands
        return lands

    def _arrivals(self) -> Iterator[tuple[int, int]]:
        """The keys on the link and when they will be there, in order."""
        pace, arrives = self.config.pace, self._link_since + self.config.pace.latency_ns
        for submit in self._submitted.values():
            arrives += len(submit.loads) * pace.transfer_ns
            for load in submit.loads:
                yield load.key, arrives

    def _lead_stands(self, event: LeadStands) -> None:
        if not (
            self._phase is Phase.VERIFY
            and self._next_layer == self.config.layers
            and not self._stands
            and 0 < event.tokens < self._lead
        ):
            self._refuse(event)
        self._stands = event.tokens

    # Layers

    def _enter_layers(self, phase: Phase) -> None:
        self._phase = self._between_layers = phase
        self._next_layer = 0

    def _layer_reached(self, event: LayerReached) -> LayerPlan:
        if self._phase is Phase.DRAFTING and self._drafted == self._gamma:
            self._enter_layers(Phase.VERIFY)
        if not (self._phase in (Phase.PREFILL, Phase.VERIFY) and event.layer == self._next_layer < self.config.layers):
            self._refuse(event)
        self._next_layer += 1
        residency, queue = self.residency, self.queue
        resident, in_flight = residency.resident, residency.in_flight
        first = event.layer * self.config.experts
        there = self._there
        host = () if self._fetch_only else self._for_host(event, there)
        hits: list[int] = []
        late: list[int] = []
        misses: list[int] = []
        used, present, absent, pin = [], [], [], residency.pinned.add
        demanded: list[int] = []
        demand = demanded.append if self._miss.in_order else queue.demand
        for expert in event.experts:
            key = first + expert
            if expert in host:
                if key in there:
                    hits.append(expert)
                    used.append(key)
                else:
                    (late if key in in_flight or key in queue.prefetches else misses).append(expert)
                continue
            pin(key)
            if key in resident:
                hits.append(expert)
                present.append(key)
            else:
                absent.append(key)
                if key in in_flight:
                    late.append(expert)
                else:
                    (late if key in queue.prefetches else misses).append(expert)
                    demand(key)
        for key in sorted(demanded):
            queue.demand(key)
        if absent and self._miss.whole_layer:
            present = self._demand_rest_of_layer(event.layer) + present
        present += absent  # Residents first; both kinds in routing order.
        if self._has_buffers:
            residency.adopt(present)
        residency.touch(used + present if used else present)
        wishes = self.forecast.layer_reached(event)
        if queue.prefetches and self.forecast.expires:
            queue.drop(first, first + self.config.experts)
        if wishes:
            self._wish(wishes, Purpose.PREFETCH)
        self._phase = Phase.LAYER
        self._on_host.update(host)
        waves = bool(absent) and (self._by_value or not residency.holds(present))
        in_order = self._miss.in_order and not waves  # In waves a hit must not keep its slot until its turn comes.
        return LayerPlan(event.layer, tuple(hits), tuple(late), tuple(misses), host, in_order, waves)

    @property
    def _there(self) -> Container[int]:
        """What is cached: not what passes through the slots that a fixed placement leaves, even while it is there."""
        return self.residency.fixed if self._only_initial else self.residency.resident

    def _for_host(self, event: LayerReached, there: Container[int]) -> tuple[int, ...]:
        """The experts of the layer that the CPU computes, in routing order."""
        if isinstance(self._miss, Split):
            return self._share(event)
        first, window = event.layer * self.config.experts, self._window
        assert isinstance(self._miss, HostCompute | CheaperOf)
        pace, on_host = self.config.pace, self._miss.on_host
        return tuple(
            expert
            for expert, tokens in zip(event.experts, event.tokens, strict=True)
            if first + expert not in there and on_host(tokens, window, pace)
        )

    def _share(self, event: LayerReached) -> tuple[int, ...]:
        """Those that it computes so that it and the GPU are through with the layer together."""
        first, now, pace = event.layer * self.config.experts, event.time, self.config.pace
        resident, arrivals, free = self.residency.resident, {}, now + pace.latency_ns
        for key, arrives in self._arrivals():
            arrivals[key] = free = max(arrives, now)
        there, absent, late = [], [], []
        for expert, tokens in zip(event.experts, event.tokens, strict=True):
            key, host_ns = first + expert, pace.host_expert_ns(tokens)
            if key in resident:
                there.append(Needed(host_ns, expert))
            elif key in arrivals:
                late.append(Late(now - arrivals[key], host_ns, expert))
            else:
                absent.append(Needed(host_ns, expert))
        shares = split(sorted(there), sorted(absent), sorted(late), free - now, pace)
        self._host_until = now + shares.host_ns
        return tuple([expert for expert in event.experts if expert in shares.host])

    def _demand_rest_of_layer(self, layer: int) -> list[int]:
        """Demand all experts of a layer that are neither there nor on their way; returns those that were not yet."""
        residency, queue = self.residency, self.queue
        first = layer * self.config.experts
        rest = [
            key
            for key in range(first, first + self.config.experts)
            if key not in residency.resident and key not in residency.in_flight and key not in queue.demands
        ]
        for key in rest:
            queue.demand(key)
        return rest

    def _gate_predicted(self, event: GatePredicted) -> None:
        if not (self._phase is Phase.LAYER and event.layer == self._next_layer < self.config.layers):
            self._refuse(event)
        forecast = self.forecast
        wishes = forecast.gate_predicted(event)
        if wishes and forecast.refines:
            first = event.layer * self.config.experts
            self.queue.drop(first, first + self.config.experts)
        if forecast.most is not None:
            wishes = _at_most(forecast.most, wishes, self.residency.resident)
        self._wish(wishes, Purpose.PREFETCH)

    def _computed(self, event: Computed) -> None:
        first, residency = event.layer * self.config.experts, self.residency
        keys = {first + expert for expert in event.experts}
        if not (
            self._phase is Phase.LAYER
            and event.layer == self._next_layer - 1
            and len(keys) == len(event.experts)
            and keys <= residency.pinned
            and keys <= residency.resident.keys()
        ):
            self._refuse(event)
        residency.pinned -= keys

    def _host_computed(self, event: HostComputed) -> None:
        if not (
            self._phase is Phase.LAYER
            and event.layer == self._next_layer - 1
            and event.expert in self._on_host
            and event.started <= event.ended <= event.time
        ):
            self._refuse(event)
        self._moved = False
        self._on_host.remove(event.expert)

    def _layer_done(self, event: LayerDone) -> None:
        residency = self.residency
        if not (
            self._phase is Phase.LAYER
            and event.layer == self._next_layer - 1
            and residency.pinned <= residency.resident.keys()
            and not self._on_host
            and self._granted is None
        ):
            self._refuse(event)
        residency.pinned.clear()
        self._phase = self._between_layers
        if self._length is not None and self._phase is Phase.VERIFY:
            self._length.stalled(sum(end - start for start, end in event.waits))
        wishes = self.forecast.layer_done(event)
        if wishes:
            self._wish(wishes, Purpose.PREFETCH)

    # Transfers

    def _wish(self, wishes: Iterable[Wish], purpose: Purpose) -> None:
        residency, forecast = self.residency, self.forecast
        resident, in_flight = residency.resident, residency.in_flight
        if forecast.replaces and wishes and purpose is Purpose.PREFETCH:
            self.queue.clear()
        there = []
        for key, deadline, weight in wishes:
            if key in resident:
                there.append(key)
            elif key not in in_flight:
                self.queue.prefetch(key, deadline, weight, purpose)
        if there and forecast.protects:
            residency.touch(there)

    def _submissions(self) -> list[Command]:
        """Batches for the link, as long as it has room, something is queued and a slot can be had."""
        queue, claim, submitted = self.queue, self.residency.claim, self._submitted
        submits: list[Command] = []
        while len(submitted) < self._depth:
            batch = self.planner.next_batch(queue)
            if batch is None:
                break
            purpose, keys = batch
            demand = purpose is Purpose.DEMAND
            loads: list[Load] = []
            for key in keys:
                load = claim(key, demand)
                if load is None:
                    break
                queue.take(key)
                loads.append(load)
            if not loads:
                if not demand and self.forecast.now_or_never:
                    queue.clear()
                break
            aligned = self.residency.align(loads) if len(loads) > 1 else tuple(loads)
            submit = Submit(self._batches, purpose, aligned)
            self._batches += 1
            if not submitted:
                self._link_since = self._time
            submitted[submit.batch] = submit
            submits.append(submit)
        return submits

    def _batch_arrived(self, event: BatchArrived) -> None:
        if not (event.batch in self.queue.submitted and event.started <= event.ended <= event.time):
            self._refuse(event)
        self._link_since = event.ended
        for key, _, _ in self.queue.submitted.pop(event.batch).loads:
            self.residency.arrive(key)
        if len(self.residency.resident) == self._keys:
            # Everybody is there, and nobody will ever have to leave: so there is nothing to know any more.
            self.forecast, self._looks_ahead = Forecast(), False

    def _batch_failed(self, event: BatchFailed) -> Submit:
        if event.batch not in self.queue.submitted:
            self._refuse(event)
        failed = self.queue.submitted[event.batch]
        if failed.attempt > 1:
            raise TransferFailed(f"batch {event.batch} failed twice; its loads: {failed.loads}")
        again = failed._replace(attempt=failed.attempt + 1)
        self.queue.submitted[event.batch] = again
        return again

    def _refuse(self, event: Event) -> NoReturn:
        raise IllegalEvent(
            f"not allowed {self._phase.value} (next layer {self._next_layer}, {self._drafted} of {self._gamma} tokens "
            f"drafted): {event}"
        )


def _at_most(most: int, wishes: Iterable[Wish], resident: Container[int]) -> list[Wish]:
    """The wishes for residents, and the first `most` of the others."""
    chosen: list[Wish] = []
    for wish in wishes:
        if wish[0] not in resident:
            if not most:
                continue
            most -= 1
        chosen.append(wish)
    return chosen
