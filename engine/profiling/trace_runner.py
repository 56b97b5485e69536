"""Runs that follow a trace, one after the other, on the same models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine.decoding.decoder import Decoder
from engine.decoding.forced_request import ForcedRequest
from engine.decoding.forced_routing import ForcedRouting
from engine.decoding.session import Session, Weights
from engine.earlier_run import EarlierRun
from engine.memory.layout import Layout
from engine.memory.slot_buffer import SlotBuffer
from spmoe.drive.dispatcher import Observer
from spmoe.machine.cost import CostModel
from spmoe.policy.registry import recipe as find_recipe
from spmoe.scheduler.config import SchedulerConfig
from spmoe.state.keys import Shape
from spmoe.trace.schema import Trace
from spmoe.trace.windows import requests


@dataclass(frozen=True, slots=True)
class Bench:
    """Models on a device, with random weights as a rule, and how their experts lie in memory.

    `layer_map` is None where the draft's states cannot go through the target's routers, and `why` says why.
    """

    weights: Weights
    layout: Layout
    shape: Shape
    layer_map: tuple[int, ...] | None
    why: str
    device: torch.device
    dtype: torch.dtype

    def run(
        self,
        trace: Trace,
        config: SchedulerConfig,
        slots: SlotBuffer | None = None,
        *,
        gbps: float | None = None,
        latency_ns: int = 0,
        imitated: CostModel | None = None,
        observers: tuple[Observer, ...] = (),
        told: Callable[[int], Any] = lambda tokens: None,
    ) -> float:
        """Times `trace` under a policy; `observers` see every event, and `told` hears of the tokens put out.

        Returns what the scheduler took per layer, in ns, without the events of arrivals.

        `slots` are as many as `config` has, or None to make them for this run; `gbps`, `latency_ns` and `imitated` as
        in `Session`.  Raises InputError where slots do not fit the device.
        """
        recipe = find_recipe(config.recipe)
        known = EarlierRun(recipe, self.shape, config.gamma, trace)
        if slots is None:
            slots = SlotBuffer(self.layout, config.slots, self.device)
        routing = ForcedRouting(self.shape.top_k, self.device)
        with Session(
            self.weights,
            slots,
            config,
            known.future,
            layer_map=self.layer_map,
            gbps=gbps,
            latency_ns=latency_ns,
            imitated=imitated,
            observers=observers,
        ) as session:
            decoder = Decoder(session, known.popular, known.touched)
            for lines in requests(trace):
                for tokens in decoder.run(ForcedRequest(lines, routing, session.vocabulary, session.lengths)):
                    told(len(tokens))
            session.driver.finish()
            return session.driver.deciding_ns
