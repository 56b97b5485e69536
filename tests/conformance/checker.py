"""The contract between drivers and scheduler (docs/contract.md) as an observer.

It knows nothing of the scheduler's inside: from events and commands alone it follows what a GPU would hold, and asserts
what either side owes the other.
"""

from __future__ import annotations

from collections.abc import Set
from enum import Enum

from spmoe.scheduler.config import SchedulerConfig
from spmoe.state.commands import Command, DraftAhead, LayerPlan, Purpose, Reply, Speculate, Submit, Verify
from spmoe.state.events import (
    BatchArrived,
    BatchFailed,
    Computed,
    DraftPredicted,
    Event,
    Forecast,
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


class Phase(Enum):
    """The columns of the contract's table."""

    START = "start"
    READY = "ready"
    PREFILL = "prefill"
    DRAFTING = "drafting"
    VERIFY = "verify"


class ContractChecker:
    """Observes a run from its first event on; AssertionError where an event or a command breaks the contract."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.phase = Phase.START
        self.time = 0
        self.speculate = Speculate(0, 0, 1)
        self.drafted = self.predicted = 0
        self.granted: DraftAhead | None = None
        """What the draft is to do past the window, and has not done yet."""
        self.lead = 0
        """Tokens that it has read from the window's last one on."""
        self.stands = 0
        """How many of the next window's tokens it has read so."""
        self._lead_layer = 0
        self.in_layer = False
        self.reached = -1
        """The layer reached last; -1 before the first one of a pass."""
        self.left: dict[int, None] = {}
        """Keys that the reached layer still needs; what was not reported as computed counts until the layer is done."""
        self.waves = False
        self.on_host: set[int] = set()
        """Keys of the reached layer that the CPU has to compute."""
        self._since = 0
        """When the layer before was done, or whatever came before the first."""
        self.submitted: dict[int, Submit] = {}
        """Batches on the link, first submitted first."""
        self.resident: dict[int, int] = {}
        self.in_flight: dict[int, int] = {}
        self._slots: dict[int, int] = {}
        """Per slot the key that is in it, or on its way into it."""
        self._submitted_at: dict[int, int] = {}
        self._may_prefill = self._may_predict_gate = False
        self._batches = self._link_free_at = self._reached_at = 0

    def keys(self, layer: int, experts: tuple[int, ...]) -> tuple[int, ...]:
        """The keys of a layer's experts."""
        return tuple(layer * self.config.experts + expert for expert in experts)

    @property
    def ready(self) -> tuple[int, ...]:
        """Needed experts of the reached layer that are there."""
        return tuple(key % self.config.experts for key in self.left if key in self.resident)

    @property
    def layer_complete(self) -> bool:
        """Whether all that the reached layer still needs is there."""
        there = self.left.keys() <= self.resident.keys()
        return self.in_layer and there and not self.on_host and self.granted is None

    @property
    def pass_done(self) -> bool:
        """Whether all layers of this prefill or verification are over."""
        return self.reached == self.config.layers - 1 and not self.in_layer

    def allows(self, event: Event) -> bool:
        """The table of legal events."""
        if event.time < self.time:
            return False
        phase = self.phase
        match event:
            case RequestBegun():
                return phase in (Phase.START, Phase.READY)
            case PrefillBegun():
                return phase is Phase.READY and self._may_prefill and event.tokens > 0
            case PrefillEnded():
                return phase is Phase.PREFILL and self.pass_done
            case StepBegun():
                return phase is Phase.READY and event.limit >= 0
            case DraftPredicted() if self.granted is not None:
                token, first, end = self.granted
                return (event.token, event.layer, len(event.forecasts)) == (token, first, end - first) and first < end
            case TokenDrafted() if self.granted is not None:
                token, first, _ = self.granted
                return event.token == token and first == self.config.layers
            case DraftPredicted():
                more = self.drafted < self.speculate.gamma and self.predicted < self.speculate.layers
                due = (self.drafted, self.predicted) if more and phase is Phase.DRAFTING else None
                return (event.token, event.layer) == due
            case TokenDrafted():
                due_token = event.token == self.drafted < self.speculate.gamma
                return phase is Phase.DRAFTING and due_token and self.predicted == self.speculate.layers
            case LayerReached():
                drafted = phase is Phase.DRAFTING and self.drafted == self.speculate.gamma
                between = phase in (Phase.PREFILL, Phase.VERIFY) and not self.in_layer
                return (drafted or between) and event.layer == self.reached + 1 < self.config.layers
            case GatePredicted():
                return self.in_layer and event.layer == self.reached + 1 < self.config.layers
            case Computed():
                return self.in_layer and event.layer == self.reached and set(event.experts) <= set(self.ready)
            case HostComputed():
                (key,) = self.keys(event.layer, (event.expert,))
                return (
                    self.in_layer
                    and event.layer == self.reached
                    and key in self.on_host
                    and event.started <= event.ended <= event.time
                )
            case LayerDone():
                return self.layer_complete and event.layer == self.reached
            case BatchArrived():
                return event.batch in self.submitted and event.started <= event.ended <= event.time
            case BatchFailed():
                return event.batch in self.submitted and self.submitted[event.batch].attempt == 1
            case LinkAwaited():
                verifying = phase is Phase.VERIFY and self.in_layer
                return verifying and event.layer == self.reached and self.granted is None
            case LeadStands():
                return phase is Phase.VERIFY and self.pass_done and not self.stands and 0 < event.tokens < self.lead
            case StepEnded():
                return phase is Phase.VERIFY and self.pass_done and 0 <= event.accepted <= self.speculate.gamma

    def observe(self, event: Event, commands: tuple[Command, ...]) -> None:
        """Check an event and what it was answered with."""
        assert self.allows(event), f"not legal while {self.phase.value}, layer {self.reached} reached: {event}"
        self.time = event.time
        there, flying = frozenset(self.resident), frozenset(self.in_flight)
        retry = self.submitted[event.batch] if isinstance(event, BatchFailed) else None
        self._follow(event)
        for command in commands:
            if isinstance(command, LayerPlan):
                # What the CPU computes is no need of the link: its weights may travel all the same, as a prefetch.
                self.on_host = set(self.keys(command.layer, command.host))
        for key in self.on_host & self.left.keys():
            del self.left[key]
        replies: list[Reply] = []
        for command in commands:
            if not isinstance(command, Submit):
                replies.append(command)
                continue
            assert not replies, f"submissions come before the reply: {commands}"
            if retry is not None and command.batch == retry.batch:
                assert command == retry._replace(attempt=2)
                self._onto_link(command)
                retry = None
            else:
                self._check_submission(command)
        assert retry is None, "a failed batch is submitted again"
        assert len(replies) <= 1, f"at most one reply: {commands}"
        self._check_reply(event, replies[0] if replies else None, there, flying)
        waiting = self.left and not (self.ready if self.waves else self.left.keys() <= self.resident.keys())
        stuck = waiting and not self.submitted and not self.on_host
        assert not stuck, "the verifier waits while nothing is on the link"

    def finish(self) -> None:
        """The run is over: nothing is left half done."""
        assert self.phase in (Phase.START, Phase.READY), f"the run ends {self.phase.value}"
        assert not self.submitted, "batches never arrived"

    # What the driver says

    def _follow(self, event: Event) -> None:
        config = self.config
        match event:
            case RequestBegun():
                assert len(set(event.popular)) == len(event.popular)
                self._may_prefill, self.phase = True, Phase.READY
            case PrefillBegun():
                self._enter(Phase.PREFILL)
            case StepBegun():
                assert event.limit <= config.gamma
                self._enter(Phase.DRAFTING)
            case PrefillEnded() | StepEnded():
                self.phase = Phase.READY
            case DraftPredicted() if self.granted is not None:
                self._check_forecasts(event.forecasts)
                token, _, self._lead_layer = self.granted
                over = self._lead_layer == config.layers
                self.granted = DraftAhead(token, config.layers, config.layers) if over else None
            case TokenDrafted() if self.granted is not None:
                self.lead, self._lead_layer, self.granted = self.lead + 1, 0, None
            case LeadStands():
                self.stands = event.tokens
            case DraftPredicted():
                end = min(event.layer + self.speculate.group, self.speculate.layers)
                assert len(event.forecasts) == end - event.layer, "a report covers a group of layers"
                self._check_forecasts(event.forecasts)
                self.predicted = end
            case TokenDrafted():
                assert event.prob is None or 0 <= event.prob <= 65536
                self.drafted, self.predicted = self.drafted + 1, 0
                self._since = event.time
            case LayerReached():
                if self.phase is Phase.DRAFTING:
                    self.phase = Phase.VERIFY
                assert len(set(event.experts)) == len(event.experts) == len(event.tokens)
                assert all(0 <= expert < config.experts for expert in event.experts) and all(event.tokens)
                self.in_layer, self._reached_at = True, event.time
                self.reached += 1
                self.left = dict.fromkeys(self.keys(event.layer, event.experts))
                self._may_predict_gate = True
                self._check_forecasts(event.gates)
            case GatePredicted():
                assert self._may_predict_gate, "told once per layer"
                assert self.phase is Phase.PREFILL or len(event.forecasts) == self.speculate.gamma + 1
                self._check_forecasts(event.forecasts)
                self._may_predict_gate = False
            case Computed():
                assert event.experts and len(set(event.experts)) == len(event.experts)
                for key in self.keys(event.layer, event.experts):
                    del self.left[key]
            case HostComputed():
                assert self._reached_at <= event.started <= event.ended <= event.time
                self.on_host -= set(self.keys(event.layer, (event.expert,)))
            case LayerDone():
                assert not (self.waves and self.left), "in a layer that runs in waves, every expert is reported"
                times = [self._since, *[time for wait in event.waits for time in wait], event.time]
                assert times == sorted(times), "waits lie in the layer, one after the other"
                reached = self._reached_at
                assert all(end < reached or start >= reached for start, end in event.waits), "attention is no wait"
                self._since = event.time
                self.left, self.in_layer, self._may_predict_gate = {}, False, False
            case BatchArrived():
                assert event.batch == next(iter(self.submitted)), "the link keeps the order of submission"
                assert event.started >= max(self._link_free_at, self._submitted_at[event.batch])
                self._link_free_at = event.ended
                for load in self.submitted.pop(event.batch).loads:
                    self.resident[load.key] = self.in_flight.pop(load.key)
            case BatchFailed():
                del self.submitted[event.batch]

    def _enter(self, phase: Phase) -> None:
        self.phase, self.reached, self._since = phase, -1, self.time
        self._may_prefill = self._may_predict_gate = False

    def _check_forecasts(self, forecasts: tuple[Forecast, ...]) -> None:
        for forecast in forecasts:
            experts = [expert for expert, _ in forecast]
            assert len(set(experts)) == len(experts) and all(0 <= expert < self.config.experts for expert in experts)
            assert all(0 <= prob <= 65536 for _, prob in forecast)

    # What the scheduler says

    def _check_submission(self, submit: Submit) -> None:
        assert submit.batch == self._batches, "batches are numbered in order"
        assert submit.attempt == 1 and submit.loads
        self._batches += 1
        for load in submit.loads:
            key, slot = load.key, load.slot
            assert key not in self.resident and key not in self.in_flight, f"loaded twice: {load}"
            assert 0 <= slot < self.config.slots, f"no such slot: {load}"
            assert self._slots.get(slot) == load.evicted, f"the slot holds {self._slots.get(slot)}: {load}"
            if load.evicted is not None:
                assert load.evicted not in self.in_flight, f"evicts what is in flight: {load}"
                assert load.evicted not in self.left, f"evicts what is needed: {load}"
                del self.resident[load.evicted]
            assert submit.purpose is Purpose.DEMAND or key not in self.left, f"wrong purpose: {submit}"
            self._slots[slot] = key
            self.in_flight[key] = slot
        if submit.purpose is Purpose.DEMAND:
            assert any(load.key in self.left for load in submit.loads), f"nobody waits for it: {submit}"
        assert len(self.resident) + len(self.in_flight) == len(self._slots) <= self.config.slots
        if submit.purpose is not Purpose.DEMAND:
            assert all(key in self.resident or key in self.in_flight for key in self.left), "demand comes first"
        self._onto_link(submit)

    def _onto_link(self, submit: Submit) -> None:
        self.submitted[submit.batch] = submit
        self._submitted_at[submit.batch] = self.time
        assert len(self.submitted) <= self.config.depth

    def _check_reply(self, event: Event, reply: Reply | None, there: Set[int], flying: Set[int]) -> None:
        match event:
            case StepBegun():
                assert isinstance(reply, Speculate)
                assert 0 <= reply.gamma <= event.limit
                assert 0 <= reply.layers <= self.config.layers and reply.group >= 1
                self.speculate = reply
                self.drafted, self.lead = min(self.stands, reply.gamma), max(0, self.stands - reply.gamma)
                self.predicted = self.stands = self._lead_layer = 0
            case TokenDrafted() if self.phase is Phase.DRAFTING and reply is not None:
                assert isinstance(reply, Verify) and self.config.chooses
                assert self.drafted - 1 <= reply.drafted <= self.drafted and reply.drafted < self.speculate.gamma
                self.speculate = self.speculate._replace(gamma=reply.drafted)
                self.drafted, self.lead = reply.drafted, self.drafted - reply.drafted
            case LayerReached():
                assert isinstance(reply, LayerPlan)
                self._check_plan(event, reply, there, flying)
                self.waves = reply.waves
            case LinkAwaited():
                if reply is not None:
                    assert isinstance(reply, DraftAhead)
                    self._check_lead(reply)
            case _:
                assert reply is None

    def _check_lead(self, reply: DraftAhead) -> None:
        assert self.submitted or self.on_host, "the draft goes on only while link or CPU are awaited"
        assert not self.ready or not self.waves, "something could compute"
        assert (reply.token, reply.first) == (self.speculate.gamma + self.lead, self._lead_layer), "one after the other"
        assert reply.first < reply.until <= self.config.layers
        self.granted = reply

    def _check_plan(self, event: LayerReached, plan: LayerPlan, there: Set[int], flying: Set[int]) -> None:
        groups = (plan.hits, plan.late, plan.misses)
        assert plan.layer == event.layer
        assert sorted(sum(groups, ())) == sorted(event.experts), "every need is a hit, late or a miss"
        rank = event.experts.index
        assert all(list(group) == sorted(group, key=rank) for group in groups), "in routing order"
        first = event.layer * self.config.experts
        here = {expert for expert in event.experts if first + expert in there}
        assert set(plan.hits) <= here <= {*plan.hits, *plan.host}
        assert {expert for expert in event.experts if first + expert in flying} <= set(plan.late)
        assert set(plan.host) <= set(event.experts)
        assert list(plan.host) == sorted(plan.host, key=rank), "in routing order"
        assert plan.waves or len(self.left) <= self.config.slots
        assert not (plan.waves and plan.in_order)
