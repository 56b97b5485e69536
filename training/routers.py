"""Listening to routers, and what is asked of them: that all experts are used, and that logits stay small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from engine.moe.layers import MoeLayer
from engine.moe.router import Routing


@contextmanager
def record_routing(layers: Sequence[MoeLayer]) -> Iterator[list[Routing]]:
    """Collects what the routers say in a forward pass, in the order of layers; clear the list before the next pass."""
    routings: list[Routing] = []

    def hear(_router: torch.nn.Module, _inputs: Any, output: Any) -> None:
        routings.append(Routing(*output))

    hooks = [layer.router.module.register_forward_hook(hear) for layer in layers]
    try:
        yield routings
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def route_at_random(layers: Sequence[MoeLayer], generator: torch.Generator) -> Iterator[None]:
    """Has every token go to distinct experts drawn at random, with the weights by rank that its own would have had."""

    def draw(_router: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        logits, weights, experts = output
        drawn = torch.rand(logits.shape, generator=generator).topk(experts.shape[-1]).indices
        return logits, weights, drawn

    hooks = [layer.router.module.register_forward_hook(draw) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def usage(experts: torch.Tensor, count: int) -> torch.Tensor:
    """The share of each of `count` experts in `experts` (int64, any shape): float32 [count], of sum 1."""
    return torch.bincount(experts.reshape(-1), minlength=count).float() / experts.numel()


def entropy(shares: torch.Tensor) -> float:
    """Of shares [n] of sum 1: 1 where all are the same, 0 where one is all."""
    return float(torch.special.entr(shares.double()).sum() / torch.tensor(len(shares), dtype=torch.float64).log())


def balance_loss(routing: Routing) -> torch.Tensor:
    """How unequal one layer's experts are used (Switch Transformer, arXiv 2101.03961): 1 where all are equal.

    experts x sum over experts of (share of all choices) x (mean probability).  Of one layer: over all layers together,
    as transformers reckons it, one layer may be lopsided where another is so the other way.
    """
    logits = routing.logits.float()
    count = logits.shape[-1]
    return count * (usage(routing.experts, count) * logits.softmax(-1).mean(0)).sum()


def z_loss(routing: Routing) -> torch.Tensor:
    """The mean square of the logits' log-sum-exp (ST-MoE, arXiv 2202.08906), of one layer."""
    return routing.logits.float().logsumexp(-1).square().mean()
