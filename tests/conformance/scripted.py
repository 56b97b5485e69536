"""The engine's driver with a trace in place of the models: link, slots and threads are real, and time is virtual.

The blob of an expert holds its key, so that a slot shows who is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from engine.execution.clock import VirtualClock
from engine.execution.cpu_worker import HostWorker
from engine.execution.driver import Driver
from engine.memory.host_store import HostStore
from engine.memory.layout import Layout
from engine.memory.link import Link
from engine.memory.slot_buffer import SlotBuffer
from sim.machine.passes import Pass, PromptPass, StepPass, Told
from spmoe.drive.dispatcher import Observer
from spmoe.drive.draft_position import Unread
from spmoe.drive.step import Accept, Attention, DraftLayers, DraftToken, Effect, Keep, Shorten
from spmoe.machine.cost import CostModel
from spmoe.scheduler.scheduler import Scheduler
from spmoe.trace.windows import Request

LAYOUT = Layout.of({"key": ((), torch.int64)})


def filled_store(keys: int) -> HostStore:
    """Experts that know their own key."""
    store = HostStore(LAYOUT, keys)
    for key in range(keys):
        LAYOUT.views(store.blob(key))["key"].fill_(key)
    store.seal()
    return store


class CheckedKernels:
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

    def enqueued(self, slots: Iterable[int]) -> None:
        self._slots.record_use(slots)

    def compute_on_host(self, experts: Sequence[int]) -> None:
        for expert in experts:
            self._host.compute(
                self._layer,
                expert,
                lambda expert=expert: self._store.blob(self._first + expert),  # type: ignore[misc]
            )
        self.computed += experts


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
        self._config = scheduler.config
        speculation = scheduler.recipe.speculation
        self._gamma = speculation.gamma(scheduler.config.gamma)
        self._beyond = max(0, speculation.lead(scheduler.config.gamma) - 1)
        self._cost = cost
        self._store = store
        self._slots = slots
        self._host = host
        needs = scheduler.recipe.needs
        self._told = Told("next_gate" in needs, "gates" in needs, scheduler.recipe.gate)
        self._knows_prompts = "future" in needs

    def run(self, request: Request, popular: tuple[int, ...]) -> None:
        """One request, to its end."""
        driver, gamma = self._driver, self._gamma
        unread, policy = Unread(), self._config.recipe
        driver.begin(request.number, popular)
        if request.prefill is not None:
            driver.prefill(request.prefill.prompt_tokens, request.prefill.touched if self._knows_prompts else ())
            self._forward(PromptPass(self._cost, request.prefill, policy, self._told))
        known = 0
        while lines := request.lines(gamma + 1 + self._beyond):
            this = StepPass(self._cost, lines, gamma, request.position, unread, policy, self._told, known)
            reach = this.reach if self._beyond else 0
            driver.step(request.position, this.limit, known, reach, lambda piece: value_of(this, piece))  # noqa: B023
            self._forward(this)
            known = this.stands
            request.advance(this.tokens)

    def _forward(self, script: Pass) -> None:
        """Answers what the driver asks for, until the program is over."""
        while (asked := self._driver.asked) is not None:
            value = value_of(script, asked)
            if isinstance(asked, Attention):
                first = asked.layer * self._config.experts
                kernels = CheckedKernels(first, asked.layer, self._store, self._slots, self._host)
                self._driver.reach(value, kernels)
                assert sorted(kernels.computed) == sorted(value.experts), "every expert computes once"
                next_asked = self._driver.asked
                assert isinstance(next_asked, Attention | Accept)
            else:
                self._driver.answer(value)


def value_of(script: Any, effect: Effect) -> Any:
    """What comes of an effect."""
    match effect:
        case Attention(layer):
            return script.attention(layer)[1]
        case DraftLayers():
            return script.draft_layers(*effect)[1]
        case DraftToken():
            return script.draft_token(*effect)[1]
        case Accept():
            return script.accept()[1]
        case Keep():
            return script.stands
        case Shorten(drafted):
            return script.shorten(drafted)


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
            scheduler, VirtualClock(link, host, cost, scheduler.recipe.name, scheduler.recipe.told), (observe,)
        )
        models = ScriptedModels(driver, scheduler, cost, store, slots, host)
        for request in requests:
            models.run(request, popular(request.number) if popular else ())
        driver.finish()
        assert not link.outstanding and not host.outstanding
