"""What a model keeps of the tokens that it has read: transformers' cache, and whether tokens can leave it again."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer


def new_cache(config: Any) -> DynamicCache:
    """An empty cache of the kind that `generate` makes for a model of that configuration: of every layer what it
    needs."""
    return DynamicCache(config=config.get_text_config(decoder=True))


def can_roll_back(config: Any) -> bool:
    """Whether tokens can be taken out of a cache again, exactly.

    Layers that fold all tokens into one state (linear attention, mamba, convolutions) cannot: a state has no tokens.
    """
    return bool(new_cache(config).is_croppable)


def record_past(cache: DynamicCache) -> None:
    """From now on sliding windows keep what leaves them until the next `crop`, which may bring it back."""
    for layer in cache.layers:
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.activate_past_recording()


def crop(cache: DynamicCache, length: int) -> None:
    """Keeps the first `length` tokens.

    Layer by layer, since a pass that did not end has been through some of them only.
    """
    layers: list[Any] = cache.layers
    for layer in layers:
        # A layer that shares another one's keys and values has none of its own.
        if layer.is_initialized and hasattr(layer, "get_seq_length"):
            layer.crop(min(0, length - layer.get_seq_length()))
