"""The target model: its forward passes, which suspend at every layer's experts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from engine.decoding.forward import Forward
from engine.decoding.layer_experts import LayerExperts
from engine.decoding.recorder import Recorder
from engine.decoding.request import Request, RouterOutput
from engine.decoding.rope import LengthDependentRope
from engine.decoding.to_host import forecasts, fractions, read
from engine.execution.coroutine import Coroutine, suspend
from engine.execution.cpu_worker import HostWorker
from engine.memory.host_store import HostStore
from engine.memory.slot_buffer import SlotBuffer
from engine.moe.backend import Computation
from engine.moe.eager import install, uninstall
from engine.moe.layers import MoeLayer
from spmoe.drive.step import Routed
from spmoe.policy.recipe import RouterSignals
from spmoe.state.events import Forecast
from spmoe.trace.gates import even_gate


class TargetModel:
    """A hollow model whose experts lie in `slots`, in `store`, or on the way from here to there.

    Its forward pass is a coroutine, which suspends at the experts of every layer until they are computed.
    """

    def __init__(
        self,
        model: Any,
        layers: tuple[MoeLayer, ...],
        store: HostStore,
        slots: SlotBuffer,
        host: HostWorker,
        computation: Computation,
        signals: RouterSignals,
        recorder: Recorder | None,
        rolls_back: bool,
    ) -> None:
        """`rolls_back`: whether windows hold drafted tokens, which may have to leave the context again."""
        self._run = Forward(model, rolls_back)
        self._layers = layers
        self._computation = computation
        self._signals = signals
        self._recorder = recorder
        self._needs_next_gate = signals.next_gate or recorder is not None
        self._needs_weights = signals.gates or signals.gate is not None or recorder is not None
        self._pass: Coroutine | None = None
        """The pass under way; None while the model skims."""
        self._request: Request
        """Whose it is."""
        self._prefill = False
        """Whether it reads a prompt."""
        self._rows = 1
        """How many tokens it goes on with.  It reads more where the model has to read its context once more."""
        self._residual: torch.Tensor
        self._rope = LengthDependentRope(model)
        self._experts = [LayerExperts(layer, store, slots, host) for layer in layers]
        install(model, layers, self._layer_reached)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        if self._needs_next_gate:
            for layer in layers[:-1]:
                if layer.norm is not None:
                    self._hooks.append(layer.norm.register_forward_pre_hook(self._keep_residual))

    def begin(self, kept: Sequence[int] = ()) -> None:
        """A new request: nothing is in the context but what it has in common with `kept`.

        That, too, is read anew where its rotary embeddings may be other ones in a longer request.
        """
        if kept and not self._rope.varies:
            self._run.keep(kept)
        else:
            self._run.begin()
        self._rope.reset()

    @property
    def context(self) -> int:
        """How many tokens are in the context."""
        return self._run.length

    def skim(self, tokens: Sequence[int]) -> None:
        """Puts `tokens` into the context without experts, unknown to the driver: for a trace whose requests begin
        behind a prompt that was not recorded."""
        self._run(tokens, 1)

    def start_prompt(self, request: Request) -> None:
        """Begins a pass over what is not in the context yet of a request's prompt."""
        self._start(request, request.prompt[self._run.length :], 1, prefill=True)

    def start_window(self, tokens: Sequence[int], request: Request) -> None:
        """Begins a pass that goes on with `tokens`."""
        self._start(request, tokens, len(tokens), prefill=False)

    def next_layer(self) -> tuple[Routed, LayerExperts]:
        """Goes on to the router of the next layer: what it routes, and the layer's experts, which must all
        be computed before the pass goes on."""
        assert self._pass is not None
        reached: tuple[Routed, LayerExperts] = self._pass.resume()
        return reached

    def logits(self) -> torch.Tensor:
        """Goes on to the end of the pass; returns its logits: [1, vocabulary] of a prompt's last token, or [tokens,
        vocabulary] of a window."""
        assert self._pass is not None
        logits: torch.Tensor = self._pass.resume()
        self._pass = None
        return logits

    def cancel(self) -> None:
        """Drops the pass under way, if any."""
        if self._pass is not None:
            self._pass.cancel()
            self._pass = None

    def forget(self, tokens: int) -> None:
        """Takes the last `tokens` tokens out of the context."""
        self._run.forget(self._run.length - tokens)

    def release(self) -> None:
        """Lets go of everything, since the model's layers know this object: it cannot be used any more."""
        uninstall(self._layers)
        for hook in self._hooks:
            hook.remove()
        self.__dict__.clear()

    def _start(self, request: Request, tokens: Sequence[int], keep: int, prefill: bool) -> None:
        self._request, self._prefill, self._rows = request, prefill, len(tokens)
        self._pass = Coroutine(partial(self._run, tokens, keep))

    def _keep_residual(self, _norm: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self._residual = arguments[0]

    def _layer_reached(
        self, layer: MoeLayer, states: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The pass has reached a layer's experts: what they add up to [T, hidden]."""
        if self._pass is None:
            return torch.zeros_like(states)
        output = self._request.routing(layer.index, self._read_routing(layer, experts, weights))
        experts, weights, chosen, shares, next_gate, gates = output
        if self._recorder is not None:
            self._recorder.routed(layer.index, chosen[-self._rows :], shares[-self._rows :], next_gate)
        if self._signals.gate is not None and len(chosen) == 1 and not self._prefill:
            keep = self._signals.gate.keeps(layer.index, len(self._layers), tuple(shares[0]))
            experts, weights, chosen = experts[:, :keep], weights[:, :keep], [chosen[0][:keep]]
        counts: dict[int, int] = {}
        for cell in chosen:
            for expert in cell:
                counts[expert] = counts.get(expert, 0) + 1
        if self._prefill:  # A trace has the experts that a prompt touches, but neither their order nor their weights.
            counts = dict(sorted(counts.items()))
            gates = (even_gate(tuple(counts)),) if self._signals.gates else ()
        reached = self._experts[layer.index]
        reached.set_rows(self._computation(layer.experts, states, experts, weights, counts))
        forecast = next_gate if self._signals.next_gate else None
        suspend((Routed(tuple(counts), tuple(counts.values()), forecast, gates), reached))
        return reached.combined()

    def _read_routing(self, layer: MoeLayer, experts: torch.Tensor, weights: torch.Tensor) -> RouterOutput:
        """What a layer's router chose, read with one synchronisation."""
        needed = [experts]
        if self._needs_weights:
            needed.append(weights / weights.sum(-1, keepdim=True))
        forecast = self._next_gate(layer)
        ids, *values = read([*needed, *forecast])
        shares = fractions(values[0]) if self._needs_weights else []
        next_gate = forecasts(*(each[None] for each in values[-2:]))[0] if forecast else None
        chosen: list[list[int]] = ids.tolist()
        gates: tuple[Forecast, ...] = ()
        if self._signals.gates and not self._prefill:
            rows = zip(chosen[-self._rows :], shares[-self._rows :], strict=True)
            gates = tuple(tuple(zip(*each, strict=True)) for each in rows)
        return RouterOutput(experts, weights, chosen, shares, next_gate, gates)

    def _next_gate(self, layer: MoeLayer) -> tuple[torch.Tensor, ...]:
        """Experts and probabilities [T, k] that the next layer's router gives this layer's residual stream."""
        following = self._layers[layer.index + 1 : layer.index + 2]
        if not following or self._prefill or not self._needs_next_gate or following[0].norm is None:
            return ()
        return following[0].forecast(self._residual.flatten(0, -2)[-self._rows :])
