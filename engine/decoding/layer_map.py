"""Which layers of a draft stand for which layers of a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from engine.moe.layers import MoeLayer, attention_norm
from spmoe.errors import InputError


def draft_norms(model: Any) -> list[torch.nn.Module]:
    """The norm behind the attention of every decoder layer; empty where the family calls it otherwise."""
    layers = getattr(getattr(model, "model", None), "layers", ())
    norms = [attention_norm(layer) for layer in layers]
    return [norm for norm in norms if norm is not None] if all(norms) else []


def match_layers(
    layers: tuple[MoeLayer, ...], depth: int, width: int, model: Any, given: Sequence[int] | None
) -> tuple[tuple[int, ...] | None, str]:
    """For each MoE layer of a target with `depth` layers of `width` the matching layer of the draft `model`.

    None, and why, where the draft's states cannot go through the target's routers: `given` by the user is a map that
    fits another depth, but nothing helps against another width.  Raises InputError for a map that does not fit.
    """
    config = model.config.get_text_config()
    norms = draft_norms(model)
    if given is not None and (len(given) != len(layers) or not all(0 <= number < len(norms) for number in given)):
        raise InputError(
            f"layer map: expected {len(layers)} numbers of draft layers within 0..{len(norms) - 1}, "
            f"got {','.join(map(str, given))}"
        )
    if config.hidden_size != width:
        return None, f"the draft is {config.hidden_size} wide, the target {width}"
    if not norms or any(layer.norm is None for layer in layers):
        return None, "the norm behind attention was not found in both models"
    if given is not None:
        return tuple(given), ""
    if len(norms) != depth:
        return None, f"the draft has {len(norms)} layers, the target {depth}; a layer map would match them"
    return tuple(layer.decoder_layer for layer in layers), ""
