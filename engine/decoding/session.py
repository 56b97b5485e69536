"""What decodes together: scheduler, link, CPU, clock and driver, and the models that are hooked up to them."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch

from engine.decoding.draft_model import DraftModel
from engine.decoding.draft_room import DraftRoom
from engine.decoding.drafter import Drafter
from engine.decoding.ngram_drafter import NgramDrafter
from engine.decoding.positions import trained_positions
from engine.decoding.recorder import Recorder
from engine.decoding.request import DraftLengths
from engine.decoding.rope import LengthDependentRope
from engine.decoding.target_model import TargetModel
from engine.execution.clock import Clock
from engine.execution.cpu_worker import HostWorker
from engine.execution.driver import Driver
from engine.execution.real_clock import RealClock
from engine.execution.virtual_clock import VirtualClock
from engine.memory.closing import Closing
from engine.memory.host_store import HostStore
from engine.memory.link import Link
from engine.memory.slot_buffer import SlotBuffer
from engine.moe.backend import choose
from engine.moe.layers import find_moe_layers
from spmoe.drive.dispatcher import Observer
from spmoe.machine.cost import CostModel
from spmoe.policy.parts.future import Future
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.scheduler import Scheduler


class Weights(NamedTuple):
    """A hollow target, a draft (None: no speculation) on the same device, and the store with the target's experts."""

    target: Any
    draft: Any
    store: HostStore


class Session(Closing):
    """One scheduler's worth of engine; use it in a `with` block, whose end joins the threads and unhooks the models."""

    def __init__(
        self,
        weights: Weights,
        slots: SlotBuffer,
        config: SchedulerConfig,
        future: Future | None = None,
        *,
        kernel: str = "plain",
        layer_map: tuple[int, ...] | None = None,
        gbps: float | None = None,
        latency_ns: int = 0,
        imitated: CostModel | None = None,
        observers: tuple[Observer, ...] = (),
        recorder: Recorder | None = None,
        ngram: bool = False,
    ) -> None:
        """`future` as in `Scheduler`, `kernel` as in `Options` and checked, `layer_map` as in `DraftModel`, `gbps` and
        `latency_ns` as in `Link`.

        With `ngram` tokens are drafted without a model.  With `imitated` completions come at the times of that cost
        model, else when they come.
        """
        self.scheduler = Scheduler(config, future)
        device: torch.device = slots.device
        with ExitStack() as stack:
            start = time.perf_counter_ns()
            link = stack.enter_context(
                Link(weights.store, slots, config.depth, gbps, latency_ns=latency_ns, start_ns=start)
            )
            host = stack.enter_context(HostWorker(start))
            signals = self.scheduler.recipe.signals
            clock: Clock = RealClock(link, host, start, device)
            if imitated is not None:
                clock = VirtualClock(link, host, imitated, config.recipe, signals)
            self.driver = Driver(self.scheduler, clock, observers)
            self.vocabulary: int = weights.target.config.get_text_config().vocab_size
            layers = find_moe_layers(weights.target)
            computation = choose(kernel, layers, slots)
            self.target = TargetModel(
                weights.target,
                layers,
                weights.store,
                slots,
                host,
                computation,
                signals,
                recorder,
                rolls_back=weights.draft is not None or ngram,
            )
            stack.callback(self.target.release)
            self.drafter: Drafter | NgramDrafter | None = None
            """None where nothing is drafted."""
            self.lengths = DraftLengths()
            """How far a draft may go."""
            positions: int | None = None
            if ngram:
                self.drafter = NgramDrafter(recorder)
                self.lengths = DraftLengths.of(self.scheduler.recipe.speculation, config.gamma, config.chooses)
                self.lengths = self.lengths._replace(past=0)
            if weights.draft is not None:
                positions = trained_positions(weights.draft.config)
                predicted = self.scheduler.predictor.predicted_layers
                draft = DraftModel(weights.draft, layers, layer_map, predicted, recorder is not None)
                stack.callback(draft.release)
                self.drafter = Drafter(draft, recorder)
                self.lengths = DraftLengths.of(self.scheduler.recipe.speculation, config.gamma, config.chooses)
            self.draft_room = DraftRoom(self.lengths.gamma, LengthDependentRope(weights.target), positions)
            """The same, by where a round begins."""
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Joins the threads and unhooks the models.  Idempotent."""
        self._stack.close()
