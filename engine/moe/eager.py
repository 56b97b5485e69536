"""The experts of a layer, computed from weights that lie somewhere else: in slots, or in the host store.

transformers calls an experts implementation with (states, experts by rank, weights by rank); ours hands them to who
drives the run.  Results of experts in slots are bit for bit those of transformers' "eager" implementation: the same
operations on the same rows in the same order, and contributions added up by ascending expert id, whenever they came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Final

import torch
from torch.nn.functional import linear
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from engine.memory.slot_buffer import SlotBuffer
from engine.moe.layers import MoeLayer

IMPLEMENTATION: Final = "spmoe"
"""Its name among transformers' experts implementations."""

Reached = Callable[[MoeLayer, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""A forward pass got to the experts of a layer: (layer, states [T, hidden], experts [T, k], weights [T, k]), returns
what they add up to [T, hidden]."""


def install(model: Any, layers: Sequence[MoeLayer], reached: Reached) -> None:
    """Have `reached` compute the experts of `model`."""
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _forward)
    for layer in layers:
        layer.experts._spmoe_reached = partial(reached, layer)
    model.set_experts_implementation(IMPLEMENTATION)


def uninstall(layers: Sequence[MoeLayer]) -> None:
    """Takes back what `install` did to the layers, which else hold on to themselves and to who computes them."""
    for layer in layers:
        del layer.experts._spmoe_reached


def _forward(module: Any, states: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = module._spmoe_reached(states, experts, weights)
    return output


def expert_output(module: Any, states: torch.Tensor, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One expert on `states` [n, hidden], before its gate weight; `parameters` as the experts module names them."""
    hidden = _project(module, states, parameters, "gate_up_proj" if module.has_gate else "up_proj")
    hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
    return _project(module, hidden, parameters, "down_proj")


def _project(module: Any, states: torch.Tensor, parameters: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    weight, bias = parameters[name], parameters.get(f"{name}_bias")
    states = states @ weight if module.is_transposed else linear(states, weight)
    return states if bias is None else states + bias


class ExpertRows:
    """Which rows of a layer's input go to which expert, and what the experts made of them.

    A row is a token with one of its experts; rows are sorted by expert, then rank, then token, as eager gathers them.
    """

    def __init__(
        self,
        slots: SlotBuffer,
        module: Any,
        states: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        counts: Mapping[int, int],
    ) -> None:
        """`states` [T, hidden]; `experts` (int64) and `weights` [T, k]; `counts`: rows of each expert that has any."""
        tokens, self._ranks = experts.shape
        order = experts.t().reshape(-1).argsort(stable=True)
        self._slots = slots
        self._module = module
        self._tokens = order % tokens
        self._weights = weights.t().reshape(-1)[order]
        self._states = states[self._tokens]
        self._dtype = states.dtype
        self._ids = sorted(counts)
        ends = accumulate(counts[expert] for expert in self._ids)
        self._rows = {expert: slice(end - counts[expert], end) for expert, end in zip(self._ids, ends, strict=True)}
        self._outputs: dict[int, torch.Tensor] = {}

    def inputs(self, expert: int) -> torch.Tensor:
        """What `expert` computes with [n, hidden]."""
        return self._states[self._rows[expert]]

    def compute(self, expert: int, slot: int) -> None:
        """Compute an expert with the weights in `slot`."""
        self._outputs[expert] = expert_output(self._module, self.inputs(expert), self._slots.views(slot))

    def launch(self) -> None:
        """Nothing is left to do: all is enqueued."""

    def put(self, expert: int, output: torch.Tensor) -> None:
        """The output [n, hidden] of an expert that was computed elsewhere."""
        self._outputs[expert] = output

    def combined(self) -> torch.Tensor:
        """What all experts add up to [T, hidden]; each must have its output."""
        outputs = torch.cat([self._outputs[expert] for expert in self._ids])
        outputs = (outputs * self._weights[:, None]).to(self._dtype)
        # Sorted by token, each token's rows stay in the order of experts: added one by one, as eager does.
        by_token = self._tokens.argsort(stable=True).view(-1, self._ranks)
        total = outputs[by_token[:, 0]]
        for rank in range(1, self._ranks):
            total = total + outputs[by_token[:, rank]]
        return total
