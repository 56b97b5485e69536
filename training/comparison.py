"""Draft and target side by side on held-out text: how well each predicts it, and the draft the target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy

from engine.drafting import draft_norms, match_layers
from engine.families import MoeLayer, find_moe_layers
from spmoe.errors import InputError
from training.routers import entropy, listen, route_at_random

BATCH = 8
"""Windows that go through a model at once."""


class LayerFigures(NamedTuple):
    """Of one MoE layer.

    `entropy`: of how often experts are used, 1 where all are equally.  `top1_used`: share of tokens where the expert
    that the draft's state names first is among those used; `top1_exact`: where it is the first.  `recall`: share of the
    experts used that are among as many named.  `norm` and `draft_norm`: mean length of the residual stream behind
    attention.  `cosine`: mean over pairs of experts, of all their weights.
    """

    entropy: float
    top1_used: float
    top1_exact: float
    recall: float
    norm: float
    draft_norm: float
    cosine: float


class Comparison(NamedTuple):
    """`draft_loss` and `target_loss` in nats per token.  `agreement`: share of tokens where both find the same one the
    likeliest; `overlap`: mean of the sum over tokens of min(p, q), the chance that a sampled draft stands."""

    draft_loss: float
    target_loss: float
    agreement: float
    overlap: float
    layers: tuple[LayerFigures, ...]


@torch.inference_mode()
def loss(model: Any, windows: torch.Tensor) -> float:
    """Mean nats per token on `windows`, int64 [windows, context + 1]."""
    return sum(_nats(model(input_ids=part[:, :-1]).logits, part) for part in windows.split(BATCH)) / _predicted(windows)


def random_routing_cost(target: Any, windows: torch.Tensor, seed: int) -> float:
    """Nats per token that are lost where every token goes to experts drawn at random, in all layers."""
    layers = find_moe_layers(target)
    with route_at_random(layers, torch.Generator().manual_seed(seed)):
        worse = loss(target, windows)
    return worse - loss(target, windows)


@torch.inference_mode()
def compare(draft: Any, target: Any, windows: torch.Tensor) -> Comparison:
    """Both models on `windows`, int64 [windows, context + 1].  InputError where their layers do not match."""
    layers = find_moe_layers(target)
    config = target.config
    matching, why = match_layers(layers, config.num_hidden_layers, config.hidden_size, draft, None)
    if matching is None:
        raise InputError(f"draft and target do not match: {why}")
    tallies = [_Tally(layer) for layer in layers]
    nats = [0.0, 0.0]
    agreed = overlap = 0.0
    with _residuals(draft_norms(draft)) as drafted, _residuals(_norms(layers)) as own, listen(layers) as heard:
        for part in windows.split(BATCH):
            for each in (drafted, own, heard):
                each.clear()
            q, p = (model(input_ids=part[:, :-1]).logits for model in (draft, target))
            nats[0] += _nats(q, part)
            nats[1] += _nats(p, part)
            agreed += float((p.argmax(-1) == q.argmax(-1)).sum())
            overlap += float(torch.minimum(p.softmax(-1), q.softmax(-1)).sum())
            # Lists of their own, since asking a router for a forecast is heard too.
            for tally, routing, number, residual in zip(tallies, list(heard), matching, list(own), strict=True):
                tally.count(routing.experts, drafted[number], residual)
    tokens = _predicted(windows)
    figures = tuple(each.figures() for each in tallies)
    return Comparison(nats[0] / tokens, nats[1] / tokens, agreed / tokens, overlap / tokens, figures)


def expert_cosine(layer: MoeLayer) -> float:
    """The mean cosine over pairs of experts of a layer, of all their weights."""
    flat = torch.cat([each.detach().flatten(1) for each in layer.expert_parameters().values()], 1).double()
    unit = flat / flat.norm(dim=1, keepdim=True)
    count = len(unit)
    return float(((unit @ unit.T).sum() - count) / (count * (count - 1)))


class _Tally:
    """Sums over the tokens of one layer."""

    def __init__(self, layer: MoeLayer) -> None:
        self._layer = layer
        self._used = torch.zeros(layer.experts.num_experts, dtype=torch.int64)
        self._sums = torch.zeros(5, dtype=torch.float64)
        self._tokens = 0

    def count(self, routed: torch.Tensor, drafted: torch.Tensor, own: torch.Tensor) -> None:
        """`routed` int64 [tokens, k]; residual streams behind attention, of draft and target, [tokens, hidden]."""
        named, _ = self._layer.forecast(drafted)
        self._used += torch.bincount(routed.flatten(), minlength=len(self._used))
        among = (named[:, :, None] == routed[:, None, :]).any(-1)
        self._sums += torch.stack(
            [
                among[:, 0].double().sum(),
                (named[:, 0] == routed[:, 0]).double().sum(),
                among.double().mean(-1).sum(),
                own.norm(dim=-1).double().sum(),
                drafted.norm(dim=-1).double().sum(),
            ]
        )
        self._tokens += len(routed)

    def figures(self) -> LayerFigures:
        shares = self._used / self._used.sum()
        used, exact, recall, norm, draft_norm = (self._sums / self._tokens).tolist()
        return LayerFigures(entropy(shares), used, exact, recall, norm, draft_norm, expert_cosine(self._layer))


@contextmanager
def _residuals(norms: Sequence[torch.nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Collects what goes into `norms` in forward passes, [tokens, hidden] each."""
    kept: list[torch.Tensor] = []

    def keep(_norm: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        kept.append(inputs[0].flatten(0, 1))

    hooks = [norm.register_forward_pre_hook(keep) for norm in norms]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _norms(layers: Sequence[MoeLayer]) -> list[torch.nn.Module]:
    return [layer.norm for layer in layers if layer.norm is not None]


def _nats(logits: torch.Tensor, windows: torch.Tensor) -> float:
    return float(cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten(), reduction="sum"))


def _predicted(windows: torch.Tensor) -> int:
    return windows[:, 1:].numel()
