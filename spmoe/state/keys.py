"""Expert keys as integers.

An *expert key* names one expert of one layer.  Inside the core it is ``layer * experts + expert``: an int compares,
hashes and sorts in the order (layer, expert), which is also the order of experts in host memory, and costs no
allocation on the hot path.  Logs print the pair.
"""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """The MoE layers of a model, the experts in each, and how many of them a token uses."""

    layers: int
    experts: int
    top_k: int


def expert_key(layer: int, expert: int, experts: int) -> int:
    """The key of `expert` in MoE layer `layer` of a model with `experts` experts per layer."""
    return layer * experts + expert


def layer_and_expert(key: int, experts: int) -> tuple[int, int]:
    """The pair (layer, expert) behind a key."""
    return divmod(key, experts)
