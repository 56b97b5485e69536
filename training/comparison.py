"""Draft and target side by side on held-out text: how well each predicts it, and what foretells the experts used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cosine_similarity

from engine.moe.layers import MoeLayer, find_moe_layers
from spmoe.trace.reliability import Reliability
from training.accuracy import Accuracy, Score
from training.likelihood import nats, predicted
from training.observation import LayerStates, observe
from training.predictors import Order, Tables, orders
from training.reliability import ReliabilityTally
from training.routers import entropy


class LayerComparison(NamedTuple):
    """Of one MoE layer.

    `usage`: the share of all uses that each expert has; `entropy`: of these, 1 where all are equal.  `norm` and
    `draft_norm`: mean length of the residual stream behind attention.  `attention_cosine`: mean cosine between what
    attention gives in draft and target (SP-MoE's measure, arXiv 2510.10302); `router_cosine`: between what the router
    would be given and is, the two residual streams behind the target's norm.  `predictors`: by name; next_gate has no
    entry for the first layer.  `reliability`: of the draft's forecasts.
    """

    usage: tuple[float, ...]
    entropy: float
    norm: float
    draft_norm: float
    attention_cosine: float
    router_cosine: float
    predictors: Mapping[str, Accuracy]
    reliability: Reliability


class Comparison(NamedTuple):
    """`draft_loss` and `target_loss` in nats per token.  `agreement`: share of tokens where both find the same one the
    likeliest; `overlap`: mean of the sum over tokens of min(p, q), the chance that a sampled draft stands."""

    draft_loss: float
    target_loss: float
    agreement: float
    overlap: float
    layers: tuple[LayerComparison, ...]


@torch.inference_mode()
def compare(draft: Any, target: Any, windows: torch.Tensor, tables: Tables) -> Comparison:
    """Both models on `windows`, int64 [windows, context + 1].  InputError where their layers do not match."""
    layers = find_moe_layers(target)
    tallies = [_Tally(layer) for layer in layers]
    sums = torch.zeros(4, dtype=torch.float64)
    for seen in observe(draft, target, windows):
        q, p = seen.draft_logits, seen.target_logits
        agreed = (p.argmax(-1) == q.argmax(-1)).sum()
        overlap = torch.minimum(p.softmax(-1), q.softmax(-1)).sum()
        sums += torch.tensor([nats(q, seen.windows), nats(p, seen.windows), agreed, overlap], dtype=torch.float64)
        for tally, states, named in zip(tallies, seen.layers, orders(seen, layers, tables), strict=True):
            tally.count(states, named)
    draft_loss, target_loss, agreement, shared = (sums / predicted(windows)).tolist()
    return Comparison(draft_loss, target_loss, agreement, shared, tuple(each.result() for each in tallies))


class _Tally:
    """Sums over the tokens of one layer."""

    def __init__(self, layer: MoeLayer) -> None:
        self._layer = layer
        self._used = torch.zeros(layer.experts.num_experts, dtype=torch.int64)
        self._sums = torch.zeros(4, dtype=torch.float64)
        self._tokens = 0
        self._scores: dict[str, Score] = {}
        self._reliability = ReliabilityTally()

    def count(self, states: LayerStates, named: Mapping[str, Order]) -> None:
        used, layer = states.routing.experts, self._layer
        assert layer.norm is not None
        self._used += torch.bincount(used.flatten(), minlength=len(self._used))
        for name, order in named.items():
            self._scores.setdefault(name, Score()).count(order, used)
        experts, probabilities = layer.forecast(states.draft_residual)
        self._reliability.count(probabilities[:, 0], experts[:, 0], used)
        means = (
            states.residual.norm(dim=-1),
            states.draft_residual.norm(dim=-1),
            cosine_similarity(states.draft_attention, states.attention, dim=-1),
            cosine_similarity(layer.norm(states.draft_residual), layer.norm(states.residual), dim=-1),
        )
        self._sums += torch.stack([each.double().sum() for each in means])
        self._tokens += len(used)

    def result(self) -> LayerComparison:
        shares = self._used / self._used.sum()
        predictors = {name: score.result() for name, score in self._scores.items()}
        norm, draft_norm, attention, router = (self._sums / self._tokens).tolist()
        return LayerComparison(
            usage=tuple(shares.tolist()),
            entropy=entropy(shares),
            norm=norm,
            draft_norm=draft_norm,
            attention_cosine=attention,
            router_cosine=router,
            predictors=predictors,
            reliability=self._reliability.result(),
        )
