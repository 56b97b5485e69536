"""The engine's driver with a trace in place of the models: link, slots and threads are real, and time is virtual.

The blob of an expert holds its key, so that a slot shows who is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from engine.execution.cpu_worker import HostWorker
from engine.execution.driver import Driver, Poll
from engine.execution.virtual_clock import VirtualClock
from engine.memory.host_store import HostStore
from engine.memory.layout import Layout
from engine.memory.link import Link
from engine.memory.slot_buffer import SlotBuffer
from sim.machine.passes import Pass, PromptPass, StepPass
from spmoe.drive.dispatcher import Observer
from spmoe.drive.draft_position import Unread
from spmoe.drive.step import Routed
from spmoe.machine.cost import CostModel
from spmoe.scheduler.scheduler import Scheduler
from spmoe.state.events import Forecast
from spmoe.trace.windows import Request

LAYOUT = Layout.of({"key": ((), torch.int64)})


def filled_store(keys: int) -> HostStore:
    """Experts that know their own key."""
    store = HostStore(LAYOUT, keys)
    for key in range(keys):
        LAYOUT.views(store.blob(key))["key"].fill_(key)
    store.seal()
    return store


class CheckedExperts:
    """Computes nothing, but looks whether it could: AssertionError where the weights are not those of the expert."""

    def __init__(self, first: int, layer: int, store: HostStore, slots: SlotBuffer, host: HostWorker) -> None:
        """`first` is the key of the layer's expert 0."""
        self._first = first
        self._layer = layer
        self._store = store
        self._slots = slots
        self._host = host
        self.computed: list[int] = []
        """Experts, on the device and on the CPU."""

    def compute(self, expert: int, slot: int) -> None:
        found = int(self._slots.views(slot)["key"])
        assert found == self._first + expert, f"slot {slot} holds {found} instead of {self._first + expert}"
        self.computed.append(expert)

    def launch(self, slots: Iterable[int]) -> None:
        self._slots.record_use(slots)

    def compute_on_cpu(self, experts: Sequence[int]) -> None:
        for expert in experts:
            self._host.compute(
                self._layer,
                expert,
                lambda expert=expert: self._store.blob(self._first + expert),  # type: ignore[misc]
            )
        self.computed += experts


class Reads(Unread):
    """How many tokens the draft reads, as it was last asked for."""

    last = 0

    def draft(self) -> int:
        self.last = super().draft()
        return self.last


class ScriptedPass:
    """A forward pass whose outcomes are those of the simulator's; its experts compute nothing, but are checked."""

    def __init__(self, script: Pass, tokens: int, context: int, models: ScriptedModels) -> None:
        self._script = script
        self.tokens = tokens
        self.context = context
        self.verified = 1
        self._models = models
        self._experts: CheckedExperts | None = None
        self._routed: tuple[int, ...] = ()

    def attention(self, layer: int) -> tuple[Routed, CheckedExperts]:
        self._check_last_layer()
        routed, self._experts = self._script.attention(layer)[1], self._models.experts_of(layer)
        self._routed = routed.experts
        return routed, self._experts

    def accept(self) -> int:
        self._check_last_layer()
        return self._script.accept()[1]

    def _check_last_layer(self) -> None:
        if self._experts is not None:
            assert sorted(self._experts.computed) == sorted(self._routed), "every expert computes once"


class ScriptedRound(ScriptedPass):
    """A round of the simulator's."""

    def __init__(self, script: StepPass, position: int, known: int, reads: Reads, models: ScriptedModels) -> None:
        super().__init__(script, 1 + known, position + 1 + known, models)
        self._round = script
        self._position = position
        self._reads = reads
        self._verifying = False
        self.verified = self.tokens

    @property
    def draft_reads(self) -> int:
        return self._reads.last

    def draft_layers(self, token: int, first: int, end: int, _poll: Poll) -> tuple[Forecast, ...]:
        return self._round.draft_layers(token, first, end)[1]

    def draft_token(self, token: int, _poll: Poll) -> int | None:
        if not self._verifying:
            self._set_window(token + 1)
        return self._round.draft_token(token, self._models.config.layers)[1]

    def shorten(self, drafted: int) -> None:
        self._set_window(drafted)
        self._round.shorten(drafted)

    def keep(self) -> int:
        return self._round.stands

    def attention(self, layer: int) -> tuple[Routed, CheckedExperts]:
        self._verifying = True
        return super().attention(layer)

    def _set_window(self, drafted: int) -> None:
        self.tokens = self.verified = 1 + drafted
        self.context = self._position + self.tokens


class ScriptedModels:
    """Goes through requests as the engine's decoder does; what models would find out stands in the trace."""

    def __init__(
        self,
        driver: Driver,
        scheduler: Scheduler,
        cost: CostModel,
        store: HostStore,
        slots: SlotBuffer,
        host: HostWorker,
    ) -> None:
        self._driver = driver
        self.config = scheduler.config
        self._recipe = scheduler.recipe
        self._gamma = self._recipe.speculation.gamma(self.config.gamma)
        self._beyond = max(0, self._recipe.speculation.lead(self.config.gamma) - 1)
        self._cost = cost
        self._store = store
        self._slots = slots
        self._host = host

    def experts_of(self, layer: int) -> CheckedExperts:
        """Those of a layer, for one pass."""
        return CheckedExperts(layer * self.config.experts, layer, self._store, self._slots, self._host)

    def run(self, request: Request, popular: tuple[int, ...]) -> None:
        """One request, to its end."""
        driver, recipe = self._driver, self._recipe
        reads = Reads()
        driver.begin(request.number, popular)
        if (prefill := request.prefill) is not None:
            prompt = PromptPass(self._cost, prefill, recipe.name, recipe.signals)
            touched = prefill.touched if "future" in recipe.needs else ()
            driver.prefill(ScriptedPass(prompt, prefill.prompt_tokens, prefill.prompt_tokens, self), touched)
        known = 0
        while lines := request.lines(self._gamma + 1 + self._beyond):
            this = StepPass(self._cost, lines, self._gamma, request.position, reads, recipe.name, recipe.signals, known)
            scripted = ScriptedRound(this, request.position, known, reads, self)
            driver.step(scripted, this.limit, known, this.reach if self._beyond else 0)
            known = this.stands
            request.advance(this.tokens)


def run_scripted(
    scheduler: Scheduler,
    cost: CostModel,
    requests: Iterable[Request],
    popular: Callable[[int], tuple[int, ...]] | None,
    observe: Observer,
) -> None:
    """Runs the requests through the engine's driver, and checks at the end that the link has nothing left."""
    config = scheduler.config
    store = filled_store(config.layers * config.experts)
    slots = SlotBuffer(LAYOUT, config.slots)
    with Link(store, slots, config.depth) as link, HostWorker() as host:
        driver = Driver(
            scheduler, VirtualClock(link, host, cost, scheduler.recipe.name, scheduler.recipe.signals), (observe,)
        )
        models = ScriptedModels(driver, scheduler, cost, store, slots, host)
        for request in requests:
            models.run(request, popular(request.number) if popular else ())
        driver.finish()
        assert not link.outstanding and not host.outstanding
