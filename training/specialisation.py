"""Whether it matters which experts compute a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from engine.moe.layers import MoeLayer
from training.likelihood import loss
from training.routers import route_at_random


def randomly_routed_loss(target: Any, layers: Sequence[MoeLayer], windows: torch.Tensor, seed: int) -> float:
    """Mean nats per token on `windows` where in `layers` every token goes to experts drawn at random."""
    with route_at_random(layers, torch.Generator().manual_seed(seed)):
        return loss(target, windows)


def expert_cosine(layer: MoeLayer) -> float:
    """The mean cosine over pairs of experts of a layer, of all their weights."""
    flat = torch.cat([each.detach().flatten(1) for each in layer.expert_parameters().values()], 1).double()
    unit = flat / flat.norm(dim=1, keepdim=True)
    count = len(unit)
    return float(((unit @ unit.T).sum() - count) / (count * (count - 1)))
