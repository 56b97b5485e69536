"""Who can say which experts a token will need, each by an order of all experts of a layer, the likeliest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from engine.moe.layers import MoeLayer, find_moe_layers
from training.observation import Pass, experts_used

Order = torch.Tensor
"""Expert ids, int64 [T, experts]: for each of T tokens those of a layer, the likeliest first."""


class Tables(NamedTuple):
    """What text tells of the experts of L layers: how often each is used, in all and by each token id.

    `popular`: int64 [L, experts].  `by_token`: int64 [L, vocabulary, experts]; of experts that a token used equally
    often (of all, where it never occurred) the popular ones come first.
    """

    popular: torch.Tensor
    by_token: torch.Tensor


@torch.inference_mode()
def learn_tables(target: Any, windows: torch.Tensor) -> Tables:
    """What `target` does when it reads `windows`, int64 [windows, context + 1]."""
    layers = find_moe_layers(target)
    experts, vocabulary = layers[0].experts.num_experts, target.config.vocab_size
    uses = torch.zeros(len(layers), vocabulary * experts, dtype=torch.int64)
    for tokens, used in experts_used(target, windows):
        for counts, chosen in zip(uses, used, strict=True):
            cells = (tokens[:, None] * experts + chosen).flatten()
            counts += torch.bincount(cells, minlength=len(counts))
    uses = uses.view(len(layers), vocabulary, experts)
    total = uses.sum(1, keepdim=True)
    # The share of all uses is below 1, so that it decides among equals only.
    by_token = _ordered(uses + total.double() / (total.sum(-1, keepdim=True) + 1))
    return Tables(_ordered(total[:, 0]), by_token)


def orders(seen: Pass, layers: Sequence[MoeLayer], tables: Tables) -> Iterator[dict[str, Order]]:
    """For each of the target's MoE `layers` what every predictor says of the tokens of `seen`, by its name.

    draft         the draft's state, sent through the target's router (SP-MoE, arXiv 2510.10302)
    next_gate     the target's own state one layer before, sent through this layer's router; not for the first
    token_table   what this token id used in training text
    popularity    what all tokens used in training text
    token_before  what the token before used here, its likeliest first; the first of a window has popularity's
    """
    tokens, first = seen.tokens, seen.first[:, None]
    before: torch.Tensor | None = None
    for layer, states in zip(layers, seen.layers, strict=True):
        popular = tables.popular[layer.index].expand(len(tokens), -1)
        found = {"draft": _asked(layer, states.draft_residual)}
        if before is not None:
            found["next_gate"] = _asked(layer, before)
        found["token_table"] = tables.by_token[layer.index, tokens]
        found["popularity"] = popular
        found["token_before"] = torch.where(first, popular, _ordered(states.routing.logits).roll(1, 0))
        before = states.residual
        yield found


def _asked(layer: MoeLayer, residual: torch.Tensor) -> Order:
    """The order in which the router of `layer` has the experts for states [T, hidden] of a residual stream."""
    assert layer.norm is not None
    return _ordered(layer.router.route(layer.norm(residual)).logits)


def _ordered(scores: torch.Tensor) -> Order:
    """Of scores [..., experts]; of equals the lowest id first."""
    return scores.sort(dim=-1, descending=True, stable=True).indices
