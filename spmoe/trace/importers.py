"""Traces from what others recorded; what the source lacks is drawn, and the header says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from spmoe.errors import InputError
from spmoe.trace.draws import Rates, draw
from spmoe.trace.llamacpp import read_csv
from spmoe.trace.routing import RequestRouting, Row
from spmoe.trace.schema import DraftShape, Header, ModelShape, Source, TokenLine
from spmoe.trace.vllm import read_arrays, read_jsonl

ImportFormat = Literal["vllm-jsonl", "vllm-npy", "llamacpp-csv"]
IMPORT_FORMATS: tuple[str, ...] = get_args(ImportFormat)


def import_trace(
    source: str | os.PathLike[str],
    format: str,
    model: ModelShape,
    draft: DraftShape | None,
    rates: Rates,
    seed: int,
    when: str = "",
) -> tuple[Header, list[TokenLine]]:
    """The header and lines of a trace made from `source`, one of `IMPORT_FORMATS`, recorded with `model`.

    Each request of the source is a request, its positions counted from 0, without a prefill line; routes (and gate
    weights, if the source has them) are the source's, `agree`, `draft_prob` and the forecasts are drawn by `draw` at
    `rates`.  `when` goes into the header as it is: same arguments, same lines.

    Raises InputError, one line naming file, line and field, for a source that breaks its format or does not fit the
    model, and for an unknown format.
    """
    path = Path(source)
    requests = _reader(format)(path, model)
    routed = [row for request in requests for row in request.routed]
    weights: list[Row | None] = []
    for request in requests:
        weights += request.weights or [None] * len(request.routed)
    places = [(number, position) for number, request in enumerate(requests) for position in range(len(request.routed))]
    draws = draw(routed, model.experts, rates, seed)
    lines = [
        TokenLine(number, position, row, agree, draft_prob, weight, forecasts)
        for (number, position), row, weight, agree, draft_prob, forecasts in zip(
            places, routed, weights, draws.agree, draws.draft_prob, draws.forecasts, strict=True
        )
    ]
    header = Header(
        model=model,
        draft=draft,
        source=Source("imported", f"{format} {path.name}", when, _how(rates, seed), rates.agreement, seed),
        tokens=len(lines),
        forecasts=rates.origins(),
        empty_cells=sum(row.count(()) for row in routed),
    )
    return header, lines


def _reader(format: str) -> Callable[[Path, ModelShape], list[RequestRouting]]:
    readers = {"vllm-jsonl": read_jsonl, "vllm-npy": read_arrays, "llamacpp-csv": read_csv}
    if format not in readers:
        raise InputError(f"field format: expected one of {', '.join(IMPORT_FORMATS)}, got {format!r}")
    return readers[format]


def _how(rates: Rates, seed: int) -> str:
    drawn = [f"agree at {rates.agreement}", f"draft_prob at AUC {rates.confidence_auc}"]
    drawn += [f"{name} forecasts at accuracy {rate}" for name, rate in rates.accuracies().items()]
    return f"routes from the source; drawn with seed {seed}: {', '.join(drawn)}"
