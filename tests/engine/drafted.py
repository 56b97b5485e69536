"""Checkpoints of a tiny target with a draft that agrees with it now and then."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine.checkpoints.refusing import quiet
from tests.engine.tiny import save_tiny, tiny_model

NOISE = 0.05
"""Of weights that are 0.2 large: a draft that far off is right about a third of the time."""


class Pair(NamedTuple):
    """The folders of a target and its draft."""

    target: Path
    draft: Path


def save_pair(folder: Path, family: str, seed: int = 0, noise: float = NOISE, **options: Any) -> Pair:
    """A target of `family`, and a draft that is the same model but for `noise` on its experts."""
    pair = Pair(folder / f"{family}-target", folder / f"{family}-draft")
    with quiet():
        save_tiny(pair.target, family, seed, **options)
        draft = tiny_model(family, seed, **options)
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for name, each in draft.named_parameters():
                if "experts" in name:
                    each.add_(torch.randn(each.shape, generator=generator) * noise)
        draft.save_pretrained(pair.draft)
    return pair
