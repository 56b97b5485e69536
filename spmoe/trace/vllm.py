"""Routing recorded under vLLM: one JSON line per token and layer, or its `routed_experts` arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from spmoe.errors import InputError
from spmoe.files import reason
from spmoe.trace.reader import decode_line, opened
from spmoe.trace.routing import RequestRouting, Row, checked_cell, checked_layer
from spmoe.trace.schema import ONE, Cell, ModelShape

_Problem = tuple[int, str, int, str]  # dataset and problem id, each as `_sortable` has it
_Place = tuple[int, int]  # token, layer


def read_jsonl(source: Path, model: ModelShape) -> list[RequestRouting]:
    """The requests of a file of lines `{"problem_id", "token_idx", "layer", "experts", "gating_probs"}`, in any order.

    Every problem (of every `dataset`, where lines name one) is a request, in the order of their ids; `experts` is by
    rank; `gating_probs`, the top-k gate weights by rank, may be absent from all lines; other keys are ignored.  A
    (token, layer) pair without a line is a missing cell.

    Raises InputError naming file, line and field; a token without a line for any layer is an error.
    """
    cells: dict[_Problem, dict[_Place, tuple[Cell, Cell | None]]] = {}
    weighted: bool | None = None
    with opened(source) as stream:
        for number, raw in enumerate(stream, start=1):
            place = f"{source}:{number}"
            try:
                line = decode_line(raw)
            except InputError as error:
                raise InputError(f"{place}: {error}") from None
            if not isinstance(line, dict):
                raise InputError(f"{place}: expected a JSON object, got {type(line).__name__}")
            for key in ("problem_id", "token_idx", "layer", "experts"):
                if key not in line:
                    raise InputError(f"{place}: field {key}: missing")
            token, layer = line["token_idx"], checked_layer(place, line["layer"], model)
            if type(token) is not int or token < 0:
                raise InputError(f"{place}: field token_idx: expected an integer from 0 up, got {token!r}")
            experts = checked_cell(place, "experts", line["experts"], model)
            weights = _weights(place, line.get("gating_probs"), len(experts))
            if weighted is None:
                weighted = weights is not None
            elif weighted != (weights is not None):
                raise InputError(f"{place}: field gating_probs: expected in all lines or in none")
            request = cells.setdefault((*_sortable(line.get("dataset")), *_sortable(line["problem_id"])), {})
            if (token, layer) in request:
                raise InputError(
                    f"{place}: field token_idx: token {token} has a line for layer {layer} already; expected one"
                )
            request[token, layer] = (experts, weights)
    if not cells:
        raise InputError(f"{source}: no lines; expected one per token and layer")
    return [_request(source, key, cells[key], model.layers) for key in sorted(cells)]


def read_arrays(source: Path, model: ModelShape) -> list[RequestRouting]:
    """The request of one .npy file, or those of a folder of .npy files in the order of their names.

    Each holds vLLM's `routed_experts`, integers of shape [tokens, layers, top_k]; a cell of -1 only is a missing one.
    Raises InputError naming file, token and layer.
    """
    files = sorted(source.glob("*.npy")) if source.is_dir() else [source]
    if not files:
        raise InputError(f"{source}: the folder has no .npy files; expected one per request")
    return [RequestRouting(_read_array(file, model), None) for file in files]


def _read_array(file: Path, model: ModelShape) -> list[Row]:
    try:
        with open(file, "rb") as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {reason(error)}") from None
    except (ValueError, EOFError):
        raise InputError(f"{file}: expected a .npy array of integers, whole and without pickled objects") from None
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{file}: expected a .npy array of integers, got {array.dtype}")
    if array.ndim != 3 or array.shape[1:] != (model.layers, model.top_k) or not len(array):
        raise InputError(
            f"{file}: expected shape [tokens, {model.layers}, {model.top_k}] ({model.name}), got {list(array.shape)}"
        )
    missing = [-1] * model.top_k
    rows = []
    for token, row in enumerate(array.tolist()):
        places = (f"{file}: token {token}, layer {layer}" for layer in range(model.layers))
        cells = zip(places, row, strict=True)
        rows.append(tuple([() if cell == missing else checked_cell(at, "experts", cell, model) for at, cell in cells]))
    return rows


def _request(source: Path, key: _Problem, cells: dict[_Place, tuple[Cell, Cell | None]], layers: int) -> RequestRouting:
    tokens = {token for token, _ in cells}
    for token in range(max(tokens) + 1):
        if token not in tokens:
            raise InputError(
                f"{source}: field token_idx: problem {key[-1] or key[-2]} has no line of token {token}, "
                f"but lines up to {max(tokens)}; expected no gaps"
            )
    nothing: tuple[Cell, Cell | None] = ((), ())
    rows = [[cells.get((token, layer), nothing) for layer in range(layers)] for token in range(len(tokens))]
    routed = [tuple([experts for experts, _ in row]) for row in rows]
    if any(weights is None for _, weights in cells.values()):
        return RequestRouting(routed, None)
    return RequestRouting(routed, [tuple([weights or () for _, weights in row]) for row in rows])


def _weights(place: str, found: Any, size: int) -> Cell | None:
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != size:
        raise InputError(f"{place}: field gating_probs: expected {size} probabilities, got {found!r}")
    for share in found:
        if type(share) not in (int, float) or not 0 <= share <= 1:
            raise InputError(f"{place}: field gating_probs: expected probabilities from 0 to 1, got {share!r}")
    return tuple([int(share * ONE + 0.5) for share in found])


def _sortable(name: Any) -> tuple[int, str]:
    """Numbers in their order, then everything else by its JSON text."""
    return (name, "") if type(name) is int else (1 << 62, json.dumps(name, sort_keys=True))
