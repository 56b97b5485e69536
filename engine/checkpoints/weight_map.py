"""Which tensor of a checkpoint goes where: into the blobs of which experts, or with the rest of the model.

transformers knows how names in files become names in its models and which of a file's tensors are stacked or joined to
one parameter (`core_model_loading`).  Here the same rules say into which part of which expert's blob a tensor is
written, so that the stacked parameter never exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from engine.checkpoints.checkpoint import Checkpoint, StoredTensor, unread_index
from engine.moe.layers import MoeLayer
from spmoe.errors import InputError
from spmoe.state.keys import expert_key


class Piece(NamedTuple):
    """Write tensor `name` into `field` of experts of MoE layer `layer`.

    With an `expert`, the tensor is part `part` of `parts` of its field, along the field's first dimension (gate and up
    come so).  With None it holds the field of all experts, stacked.
    """

    name: str
    layer: int
    expert: int | None
    field: str
    part: int
    parts: int

    def targets(self, experts: int) -> Iterator[tuple[int, int | None]]:
        """The keys that it writes to, each with its row of the tensor, None for the whole of it."""
        if self.expert is None:
            yield from ((expert_key(self.layer, expert, experts), expert) for expert in range(experts))
        else:
            yield expert_key(self.layer, self.expert, experts), None


class WeightMap(NamedTuple):
    """Where all tensors go: `pieces` to the experts, the tensors named in `rest` to the rest of the model."""

    pieces: tuple[Piece, ...]
    rest: tuple[str, ...]


class _Names:
    """What transformers makes of the names in a checkpoint of `model`."""

    def __init__(self, model: Any) -> None:
        rules = get_model_conversion_mapping(model)
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._known = model.state_dict()

    def target(self, name: str) -> tuple[str, str | None]:
        """The model's name for tensor `name`, and the pattern of the converter that it goes through, if any."""
        target, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self._known)
        if target not in self._known and name in self._known:  # some rules also match what needs none
            return name, None
        return target, pattern

    def parts(self, pattern: str) -> tuple[str, ...] | None:
        """The patterns that one expert's parameter is joined from, in order; None where more is done to them."""
        converter = next(rule for rule in self._converters if pattern in rule.source_patterns)
        steps = [(type(step).__name__, getattr(step, "dim", None)) for step in converter.operations]
        # Experts are stacked along dimension 0; then dimension 1 is the first of one expert's own.
        if steps not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
            return None
        return tuple(converter.source_patterns)


def map_weights(checkpoint: Checkpoint, model: Any, layers: tuple[MoeLayer, ...]) -> WeightMap:
    """Where each tensor of `checkpoint` goes in `model` (whole, on the meta device), whose MoE layers are `layers`.

    Raises InputError where an expert's tensor is missing, has a shape or a type that it should not have, or would have
    to be converted in a way not known here.
    """
    names = _Names(model)
    owners = {
        f"{layer.name}.{field}": (layer, field, tuple(parameter.shape))
        for layer in layers
        for field, parameter in layer.expert_parameters().items()
    }
    pieces: list[Piece] = []
    rest: list[str] = []
    for name, tensor in checkpoint.tensors.items():
        target, pattern = names.target(name)
        if target not in owners:
            rest.append(name)
            continue
        layer, field, shape = owners[target]
        piece = _piece(name, tensor, layer, field, pattern, names)
        _check(piece, tensor, shape)
        pieces.append(piece)
    _check_complete(checkpoint, pieces, owners)
    return WeightMap(tuple(pieces), tuple(rest))


def write_piece(piece: Piece, tensor: Any, fields: Mapping[str, torch.Tensor], row: int | None) -> None:
    """Writes `row` of a tensor of the checkpoint (a safetensors slice; None: all of it) into an expert's `fields`."""
    field = fields[piece.field]
    rows = field.shape[0] // piece.parts
    field[piece.part * rows : (piece.part + 1) * rows].copy_(tensor[...] if row is None else tensor[row])


def _piece(name: str, tensor: StoredTensor, layer: MoeLayer, field: str, pattern: str | None, names: _Names) -> Piece:
    if pattern is None:
        return Piece(name, layer.index, None, field, 0, 1)
    parts = names.parts(pattern)
    # "...experts.17.w1.weight": the number after the name of the module that holds them
    after = name.rpartition(f".{layer.name.rpartition('.')[2]}.")[2].partition(".")[0]
    if parts is None or not after.isdigit():
        raise InputError(f"{tensor.shard}: tensor {name}: expected one tensor per expert, to be stacked or joined only")
    return Piece(name, layer.index, int(after), field, parts.index(pattern), len(parts))


def _check(piece: Piece, tensor: StoredTensor, stacked: tuple[int, ...]) -> None:
    where = f"{tensor.shard}: tensor {piece.name}"
    expected = stacked
    if piece.expert is not None:
        if piece.expert >= stacked[0]:
            raise InputError(f"{where}: expected experts 0 to {stacked[0] - 1}")
        expected = (stacked[1] // piece.parts, *stacked[2:])
    if tensor.shape != expected:
        raise InputError(f"{where}: expected shape {list(expected)}, got {list(tensor.shape)}")
    if tensor.dtype is None:
        raise InputError(f"{where}: expected a float of 16, 32 or 64 bits; quantised weights are not supported")


def _check_complete(
    checkpoint: Checkpoint, pieces: list[Piece], owners: Mapping[str, tuple[MoeLayer, str, tuple[int, ...]]]
) -> None:
    found = {(piece.layer, piece.field, piece.expert, piece.part) for piece in pieces}
    # All fields come in the way in which one of them came in any layer.
    ways = {piece.field: (piece.expert is not None, piece.parts) for piece in pieces}
    for target, (layer, field, shape) in owners.items():
        single, parts = ways.get(field, (False, 1))
        for expert in range(shape[0]) if single else (None,):
            for part in range(parts):
                if (layer.index, field, expert, part) not in found:
                    which = target if expert is None else f"{target} of expert {expert}"
                    raise InputError(
                        f"{checkpoint.folder}: no tensor for {which} (part {part + 1} of {parts})"
                        f"{unread_index(checkpoint.folder)}"
                    )
