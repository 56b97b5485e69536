"""What an importer finds in a source: routes, and gate weights where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from spmoe.errors import InputError
from spmoe.trace.schema import Cell, ModelShape

Row = tuple[Cell, ...]  # one token: per layer, expert ids (or gate weights / 65536) by rank; () where missing


class RequestRouting(NamedTuple):
    """One request of a source, position by position from its first token."""

    routed: list[Row]
    weights: list[Row] | None


def checked_cell(place: str, field: str, found: Any, model: ModelShape) -> Cell:
    """`found` as the `top_k` distinct expert ids of one cell; InputError naming `place` and `field` otherwise."""
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != model.top_k:
        raise InputError(f"{place}: field {field}: expected {model.top_k} expert ids, got {found!r}")
    for rank, expert in enumerate(found):
        if type(expert) is not int:
            raise InputError(f"{place}: field {field}: expected integer expert ids, got {expert!r}")
        if not 0 <= expert < model.experts:
            raise InputError(f"{place}: field {field}: expert {expert} is out of range 0..{model.experts - 1}")
        if expert in found[:rank]:
            raise InputError(f"{place}: field {field}: expert {expert} is repeated; expected distinct experts")
    return tuple(found)


def checked_layer(place: str, found: Any, model: ModelShape) -> int:
    """`found` as a layer of the model; InputError naming `place` otherwise."""
    if type(found) is not int:
        raise InputError(f"{place}: field layer: expected an integer, got {found!r}")
    if not 0 <= found < model.layers:
        raise InputError(
            f"{place}: field layer: {found} is out of range 0..{model.layers - 1}, "
            f"the mixture-of-experts layers of {model.name}"
        )
    return found
