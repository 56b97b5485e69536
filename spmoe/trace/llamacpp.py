"""Routing recorded under llama.cpp as `layer,expert` rows in evaluation order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from spmoe.errors import InputError
from spmoe.trace.reader import opened
from spmoe.trace.routing import RequestRouting, Row, checked_cell, checked_layer
from spmoe.trace.schema import Cell, ModelShape


def read_csv(source: Path, model: ModelShape) -> list[RequestRouting]:
    """The one request of a CSV file of rows `layer,expert`; a first row of just these two words is allowed.

    llama.cpp evaluates layer by layer, so a pass over n tokens (a prompt, a batch; n is 1 when one token is generated)
    lists layer 0 for all n tokens, top_k rows each by rank, then layer 1 for all of them, and so on to the last layer.
    The next row of layer 0 begins the next pass.  In the last layer llama.cpp computes only the tokens whose output is
    wanted: where it has fewer than n, they are taken for the last tokens of the pass, and the others' cells are
    missing.  Every evaluated token, the prompt's too, becomes a token line.

    Raises InputError naming file, line and field; a layer left out or listed for a different number of tokens is one.
    """
    passes: list[list[list[Cell]]] = []  # pass, layer, token
    last = model.layers - 1
    previous = 0
    number = 0
    for layer, number, cells in _runs(source, model):
        expected = previous % model.layers
        if layer != expected:
            raise InputError(f"{source}:{number}: field layer: expected layer {expected}, got {layer}")
        previous = layer + 1
        if layer == 0:
            passes.append([])
        elif len(cells) != len(passes[-1][0]) and not (layer == last and len(cells) < len(passes[-1][0])):
            raise InputError(
                f"{source}:{number}: field layer: expected layer {layer} for the {len(passes[-1][0])} tokens of this "
                f"pass, got it for {len(cells)}"
            )
        passes[-1].append(cells)
    if not passes:
        raise InputError(f"{source}: no rows; expected layer,expert")
    if previous != model.layers:
        raise InputError(
            f"{source}:{number}: the last pass ends before layer {previous}; expected {model.layers} layers"
        )
    return [RequestRouting([row for layers in passes for row in _rows(layers)], None)]


def _rows(layers: list[list[Cell]]) -> list[Row]:
    tokens = len(layers[0])
    full = [[()] * (tokens - len(cells)) + cells for cells in layers]
    return list(zip(*full, strict=True))


def _runs(source: Path, model: ModelShape) -> Iterator[tuple[int, int, list[Cell]]]:
    """Each run of rows of one layer: the layer, the line of its first row, and its cells."""
    layer, first, run = -1, 1, list[int]()
    for number, found, expert in _pairs(source, model):
        if found != layer:
            if run:
                yield layer, first, _cells(source, first, run, model)
            layer, first, run = found, number, []
        run.append(expert)
    if run:
        yield layer, first, _cells(source, first, run, model)


def _cells(source: Path, first: int, run: list[int], model: ModelShape) -> list[Cell]:
    if len(run) % model.top_k:
        raise InputError(
            f"{source}:{first}: field expert: expected {model.top_k} rows per token and layer, got a run of {len(run)}"
        )
    return [
        checked_cell(f"{source}:{first + start}", "expert", run[start : start + model.top_k], model)
        for start in range(0, len(run), model.top_k)
    ]


def _pairs(source: Path, model: ModelShape) -> Iterator[tuple[int, int, int]]:
    with opened(source) as stream:
        for number, raw in enumerate(stream, start=1):
            place = f"{source}:{number}"
            try:
                row = [value.strip() for value in raw.decode("utf-8").split(",")]
            except UnicodeDecodeError:
                raise InputError(f"{place}: not UTF-8 text; expected layer,expert") from None
            if number == 1 and row == ["layer", "expert"]:
                continue
            if len(row) != 2:
                raise InputError(f"{place}: expected two values, layer,expert, got {len(row)}")
            values = []
            for field, value in zip(("layer", "expert"), row, strict=True):
                if not (value.isascii() and value.lstrip("-").isdigit() and len(value) < 10):
                    raise InputError(f"{place}: field {field}: expected an integer, got {value!r}")
                values.append(int(value))
            layer = checked_layer(place, values[0], model)
            if not 0 <= values[1] < model.experts:
                raise InputError(f"{place}: field expert: expert {values[1]} is out of range 0..{model.experts - 1}")
            yield number, layer, values[1]
