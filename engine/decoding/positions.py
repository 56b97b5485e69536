"""How many tokens a model can tell apart by their places."""

from __future__ import annotations

from typing import Any

import torch


def trained_positions(config: Any) -> int | None:
    """The longest sequence that a model of that configuration is made for; None where it does not say.

    Rotary embeddings that are stretched are made for as much more.
    """
    text = config.get_text_config(decoder=True)
    plain: int | None = getattr(text, "max_position_embeddings", None)
    if plain is None:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [each for each in rope.values() if isinstance(each, dict)] or [rope]
    return max(plain, *(_stretched(kind, plain) for kind in kinds))


def _stretched(rope: dict[str, Any], plain: int) -> int:
    """`plain` positions times the factor of the rotary embeddings, of what they were stretched from."""
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    if not isinstance(factor, int | float) or rope.get("rope_type", "default") == "default":
        return plain
    return int(factor * (original if isinstance(original, int) else plain))


def has_learned_positions(model: torch.nn.Module) -> bool:
    """Whether places are looked up in a table, behind whose end a model cannot go on."""
    return any(
        isinstance(module, torch.nn.Embedding) and (name.endswith("wpe") or "position" in name.lower())
        for name, module in model.named_modules()
    )
