"""What a model keeps of the tokens that it has read: transformers' cache, and whether tokens can leave it again."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer


def new_cache(model: Any) -> DynamicCache | None:
    """An empty cache of the kind that `generate` makes for `model`: of every layer what it needs.

    None where the model makes one of its own in its first pass.
    """
    if not model._supports_default_dynamic_cache():
        return None
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def lasting_layers(model: Any) -> tuple[str, ...]:
    """Kinds of layers from whose cache a token cannot be taken out again, exactly; often there are none.

    Those are layers that fold all tokens into one state (linear attention, mamba, convolutions), and what a family
    brings along itself, such as compressed keys and values.
    """
    cache = new_cache(model)
    if cache is None:
        return ("a cache of its own",)
    lasting = [
        layer for layer in cache.layers if not layer.is_croppable or type(layer).__module__ != DynamicCache.__module__
    ]
    return tuple(dict.fromkeys(type(layer).__name__ for layer in lasting))


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


def can_crop(cache: DynamicCache, removed: int) -> bool:
    """Whether the last `removed` tokens can be taken out of the cache as it is now."""
    layers: list[Any] = cache.layers
    return all(layer.is_croppable and _reaches_back(layer, removed) for layer in layers)


def _reaches_back(layer: Any, removed: int) -> bool:
    """Whether a sliding window still has what comes back into it when `removed` tokens leave at its other end."""
    if not (layer.is_initialized and isinstance(layer, DynamicSlidingWindowLayer)) or layer.keys is None:
        return True
    left = layer.get_seq_length() - removed
    return bool(layer.keys.shape[-2] - removed >= min(left, layer.sliding_window - 1))
