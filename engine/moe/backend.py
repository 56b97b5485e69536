"""Who computes the experts that lie in slots: torch, one after the other, or Triton kernels, several at once.

Triton is imported only where it was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from engine.memory.layout import Layout
from engine.memory.slot_buffer import SlotBuffer
from engine.moe.eager import ExpertRows
from engine.moe.gated_mlp import Gated
from engine.moe.layers import MoeLayer
from engine.options import KERNELS
from spmoe.errors import InputError


class Rows(Protocol):
    """Which rows of a layer's input go to which expert, and what the experts made of them."""

    def inputs(self, expert: int) -> torch.Tensor:
        """What `expert` computes with [n, hidden]."""

    def compute(self, expert: int, slot: int) -> None:
        """Compute an expert with the weights in `slot`, or note it for `launch`."""

    def launch(self) -> None:
        """Enqueue what was only noted."""

    def put(self, expert: int, output: torch.Tensor) -> None:
        """The output [n, hidden] of an expert that was computed elsewhere."""

    def combined(self) -> torch.Tensor:
        """What all experts add up to [T, hidden]; each must have its output."""


Computation = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor, Mapping[int, int]], Rows]
"""A pass got to an experts module: (module, states [T, hidden], experts [T, k], weights [T, k], rows of each expert
that has any)."""


def check_kernel(kernel: str, layers: Sequence[MoeLayer], layout: Layout, device: torch.device, model: str) -> None:
    """InputError where `kernel` is unknown, or cannot compute the experts of `model`, in these layers, on `device`."""
    if kernel not in KERNELS:
        raise InputError(f"kernel: expected one of {', '.join(KERNELS)}, got {kernel!r}")
    if kernel == "triton":
        _require_triton(device)
        _describe(layers, layout, model)


def choose(kernel: str, layers: Sequence[MoeLayer], slots: SlotBuffer) -> Computation:
    """The computation called `kernel` of experts in `slots`.  It has been checked."""
    plain = partial(ExpertRows, slots)
    if kernel == "plain":
        return plain
    from engine.moe.triton_grouped import MOST_TOKENS, GroupedRows

    gated = _describe(layers, slots.layout, "model")

    def rows(
        module: Any, states: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, counts: Mapping[int, int]
    ) -> Rows:
        if len(states) > MOST_TOKENS:
            return plain(module, states, experts, weights, counts)
        return GroupedRows(slots, gated, states, experts, weights, counts)

    return rows


def _describe(layers: Sequence[MoeLayer], layout: Layout, model: str) -> Gated:
    """What the experts of all layers are; InputError, naming `model`, where a kernel cannot compute them."""
    first, *others = [Gated.of(layer.experts, layout, model) for layer in layers]
    for other in others:
        if other != first:
            raise InputError(
                f"{model}: kernel triton: expected one activation, got {first.activation}, {other.activation}"
            )
    return first


def _require_triton(device: torch.device) -> None:
    try:
        from triton import knobs
    except ImportError as error:
        raise InputError(f"kernel triton: needs Triton: pip install 'spmoe[triton]' ({error})") from None
    if device.type == "cpu" and not knobs.runtime.interpret:
        raise InputError(
            "kernel triton: expected a CUDA device, got cpu; for tests, TRITON_INTERPRET=1 in the environment has "
            "Triton's interpreter compute there"
        )
