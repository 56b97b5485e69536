"""A hollow model with its experts in a store, loaded as the engine loads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine.checkpoints.loader import Blueprint, load_experts, load_rest, read_blueprint
from engine.memory.layout import Layout
from engine.moe.layers import MoeLayer, find_moe_layers


class Loaded(NamedTuple):
    """A hollow model in evaluation mode on the CPU, its MoE layers, and the store that holds their experts."""

    model: Any
    layers: tuple[MoeLayer, ...]
    store: Any
    blueprint: Blueprint


def load(
    folder: str | Path, make_store: Callable[[Layout, int], Any], *, dtype: torch.dtype, available: int | None = None
) -> Loaded:
    """Load the model in `folder`, its experts into what `make_store(layout, keys)` gives; memory is checked before."""
    blueprint = read_blueprint(folder, dtype)
    blueprint.check_memory(available)
    model = load_rest(blueprint)
    store = make_store(blueprint.layout, blueprint.geometry.keys)
    load_experts(blueprint, store)
    return Loaded(model, find_moe_layers(model), store, blueprint)
