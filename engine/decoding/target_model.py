"""The target model: its forward passes, and how they meet the driver at every layer's experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from transformers import DynamicCache

from engine.decoding.forced_routing import Script, Spoken
from engine.decoding.forward import Forward
from engine.decoding.recorder import Recorder
from engine.decoding.to_host import forecasts, fractions, read
from engine.execution.cpu_worker import HostWorker
from engine.execution.driver import Driver
from engine.memory.host_store import HostStore
from engine.memory.slot_buffer import SlotBuffer
from engine.moe.backend import Computation, Rows
from engine.moe.eager import expert_output, install, uninstall
from engine.moe.layers import MoeLayer
from spmoe.drive.step import Routed
from spmoe.policy.recipe import Told
from spmoe.state.events import Forecast
from spmoe.trace.gates import even_gate


class Target:
    """A hollow model whose experts lie in `slots`, in `store`, or on the way from here to there."""

    def __init__(
        self,
        model: Any,
        layers: tuple[MoeLayer, ...],
        store: HostStore,
        slots: SlotBuffer,
        host: HostWorker,
        computation: Computation,
        driver: Driver,
        told: Told,
        recorder: Recorder | None,
        script: Script | None = None,
    ) -> None:
        """With a `script`, its routing takes the place of what the routers say."""
        self._run = Forward(model)
        self._layers = layers
        self._slots = slots
        self._computation = computation
        self._driver = driver
        self._told = told
        self._recorder = recorder
        self._script = script
        self._wants_next_gate = told.next_gate or recorder is not None
        self._wants_weights = told.gates or told.gate is not None or recorder is not None
        self._reading = False
        """Whether the pass under way reads a prompt."""
        self._skimming = False
        """Whether the pass under way leaves out the experts."""
        self._residual: torch.Tensor
        self._cache = DynamicCache()
        self._kernels = [_LayerKernels(layer, store, slots, host) for layer in layers]
        install(model, layers, self._reached)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        if self._wants_next_gate:
            for layer in layers[:-1]:
                if layer.norm is not None:
                    self._hooks.append(layer.norm.register_forward_pre_hook(self._keep_residual))

    def begin(self) -> None:
        """A new request: nothing is in the context."""
        self._cache = DynamicCache()

    def read(self, prompt: Sequence[int]) -> torch.Tensor:
        """Reads a prompt; returns the logits [1, vocabulary] of its last token."""
        self._reading = True
        return self._forward(prompt, 1)

    def verify(self, tokens: Sequence[int]) -> torch.Tensor:
        """Goes on with `tokens`; returns the logits [len(tokens), vocabulary] of all of them."""
        self._reading = False
        return self._forward(tokens, len(tokens))

    def skim(self, tokens: Sequence[int]) -> None:
        """Puts `tokens` into the context without experts, unknown to the driver: for a script, whose requests may begin
        behind a prompt that nobody recorded."""
        self._skimming = True
        self._forward(tokens, 1)
        self._skimming = False

    def forget(self, tokens: int) -> None:
        """Takes the last `tokens` tokens out of the context."""
        if tokens:
            self._cache.crop(-tokens)

    def release(self) -> None:
        """Lets go of everything, since the model's layers know this object: it cannot be used any more."""
        uninstall(self._layers)
        for hook in self._hooks:
            hook.remove()
        self.__dict__.clear()

    def _forward(self, tokens: Sequence[int], keep: int) -> torch.Tensor:
        inputs = torch.tensor([tokens], device=self._slots.device)
        return self._run(inputs, self._cache, keep)

    def _keep_residual(self, _norm: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self._residual = arguments[0]

    def _reached(
        self, layer: MoeLayer, states: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """A forward pass got to a layer's experts: what they add up to [T, hidden]."""
        if self._skimming:
            return torch.zeros_like(states)
        spoken = self._listen(layer, experts, weights)
        experts, weights, cells, shares, next_gate, gates = spoken
        if self._recorder is not None:
            self._recorder.routed(layer.index, cells, shares, next_gate)
        if self._told.gate is not None and len(cells) == 1 and not self._reading:
            keep = self._told.gate.keeps(layer.index, len(self._layers), tuple(shares[0]))
            experts, weights, cells = experts[:, :keep], weights[:, :keep], [cells[0][:keep]]
        counts: dict[int, int] = {}
        for cell in cells:
            for expert in cell:
                counts[expert] = counts.get(expert, 0) + 1
        if self._reading:  # A trace tells which experts a prompt touches, but neither their order nor their weights.
            counts = dict(sorted(counts.items()))
            gates = (even_gate(tuple(counts)),) if self._told.gates else ()
        rows = self._computation(layer.experts, states, experts, weights, counts)
        kernels = self._kernels[layer.index]
        kernels.take(rows)
        told = next_gate if self._told.next_gate else None
        self._driver.reach(Routed(tuple(counts), tuple(counts.values()), told, gates), kernels)
        return kernels.combined()

    def _listen(self, layer: MoeLayer, experts: torch.Tensor, weights: torch.Tensor) -> Spoken:
        """What a layer's router said, read with one synchronisation, or what the script has in its place."""
        wanted = [experts]
        if self._wants_weights:
            wanted.append(weights / weights.sum(-1, keepdim=True))
        forecast = self._next_gate(layer)
        chosen, *values = read([*wanted, *forecast])
        shares = fractions(values[0]) if self._wants_weights else []
        next_gate = forecasts(*(each[None] for each in values[-2:]))[0] if forecast else None
        cells: list[list[int]] = chosen.tolist()
        gates: tuple[Forecast, ...] = ()
        if self._told.gates and not self._reading:
            gates = tuple(tuple(zip(*each, strict=True)) for each in zip(cells, shares, strict=True))
        spoken = Spoken(experts, weights, cells, shares, next_gate, gates)
        return spoken if self._script is None else self._script.routed(layer.index, spoken)

    def _next_gate(self, layer: MoeLayer) -> tuple[torch.Tensor, ...]:
        """Experts and probabilities [T, k] that the next layer's router gives this layer's residual stream."""
        following = self._layers[layer.index + 1 : layer.index + 2]
        if not following or self._reading or not self._wants_next_gate or following[0].norm is None:
            return ()
        return following[0].forecast(self._residual.flatten(0, -2))


class _LayerKernels:
    """Computes experts of one layer, on the device or on the CPU, for one pass after the other."""

    def __init__(self, layer: MoeLayer, store: HostStore, slots: SlotBuffer, host: HostWorker) -> None:
        self._layer = layer
        self._store = store
        self._slots = slots
        self._host = host
        self._rows: Rows
        self._on_host: dict[int, Future[torch.Tensor]] = {}

    def take(self, rows: Rows) -> None:
        """A pass got here with these rows."""
        self._rows = rows

    def compute(self, expert: int, slot: int) -> None:
        self._rows.compute(expert, slot)

    def enqueued(self, slots: Iterable[int]) -> None:
        self._rows.launch()
        self._slots.record_use(slots)

    def compute_on_host(self, experts: Sequence[int]) -> None:
        module, store = self._layer.experts, self._store
        first = self._layer.index * module.num_experts

        def computation(expert: int) -> Callable[[], torch.Tensor]:
            states, ready = _to_host(self._rows.inputs(expert))

            def compute() -> torch.Tensor:
                if ready is not None:
                    ready.synchronize()
                return expert_output(module, states, store.layout.views(store.blob(first + expert)))

            return compute

        for expert in experts:
            self._on_host[expert] = self._host.compute(self._layer.index, expert, computation(expert))

    def combined(self) -> torch.Tensor:
        """What all experts add up to [T, hidden]; the CPU's outputs are there, too."""
        for expert, output in self._on_host.items():
            self._rows.put(expert, output.result().to(self._slots.device, non_blocking=True))
        total = self._rows.combined()
        del self._rows  # A prompt's are large.
        self._on_host.clear()
        return total


def _to_host(states: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """A copy in host memory, and what to wait for before it may be read."""
    if states.device.type == "cpu":
        return states, None
    copy = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
    copy.copy_(states, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(states.device))
    return copy, ready
