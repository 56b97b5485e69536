"""The router of a MoE layer, as far as it can be asked about any states."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class Routing(NamedTuple):
    """What a router says of T tokens: `logits` [T, experts], `weights` and `experts` (int64) [T, top_k] by rank."""

    logits: torch.Tensor
    weights: torch.Tensor
    experts: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Router:
    """A router and what it is given besides states: tensors of the block around it that correct its scores.

    `top_k` experts are chosen per token; None where the router looks at more than states, such as the tokens' ids, or
    is no module of its own, and so cannot be asked.  `batched`: it expects states with a dimension for the batch.
    """

    module: Any  # transformers does not tell the types of its attributes
    arguments: tuple[torch.Tensor, ...] = ()
    batched: bool = False
    top_k: int | None = None

    def route(self, states: torch.Tensor) -> Routing:
        """The choice for `states` [T, hidden], normalised as the layer's own input is."""
        first, weights, last = self.module(states[None] if self.batched else states, *self.arguments)
        if last.is_floating_point():  # Granite in transformers 5.17 gives the experts first
            first, last = last, first
        return Routing(*(each.reshape(len(states), -1) for each in (first, weights, last)))


def find_router(block: torch.nn.Module) -> Router:
    """The router in the `block` around a module of experts; one that cannot be asked where `block` itself chooses."""
    for child in block.children():
        if "Router" in type(child).__name__:
            return _tried(Router(child, _arguments(child, block)))
    return Router(None)


def _arguments(router: torch.nn.Module, block: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    """The tensors of `block` that go by the names of what its router takes besides states."""
    _, *further = inspect.signature(router.forward).parameters
    return tuple(tensor for name in further if isinstance(tensor := getattr(block, name, None), torch.Tensor))


@torch.no_grad()
def _tried(router: Router) -> Router:
    """The same router in the form in which it can be asked, if there is one: found by asking it about two tokens."""
    weight = next((each for each in router.module.parameters() if each.ndim > 1), None)
    if weight is None:
        return router
    states = torch.ones(2, weight.shape[-1], dtype=weight.dtype, device=weight.device)
    for batched in (False, True):
        form = Router(router.module, router.arguments, batched)
        try:
            experts = form.route(states).experts
        except Exception:  # A family's code, given what it may not expect, can raise anything.
            continue
        return Router(router.module, router.arguments, batched, experts.shape[-1])
    return router
