"""Synthetic traces: routing from `SyntheticRouting`, draft and forecasts drawn at stated rates.

    python -m spmoe.trace.synthetic --out traces/mixtral.jsonl
    python -m spmoe.trace.synthetic --model deepseek-v2-lite --tokens 1020 --out traces/deepseek-v2-lite.jsonl

make the traces of the repository, the same bytes every time; `traces/README.md` says what they are good for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spmoe.errors import InputError
from spmoe.machine.geometry import DraftModel, Geometry, draft_model, geometry, geometry_names
from spmoe.trace.draws import Rates, draw
from spmoe.trace.schema import ONE, DraftShape, Header, ModelShape, PrefillLine, Source, TokenLine, TraceLine
from spmoe.trace.synthetic_models import model_statistics
from spmoe.trace.synthetic_routing import RoutedTokens, SyntheticRouting
from spmoe.trace.writer import write_trace


class RequestLength(NamedTuple):
    """Tokens of one request."""

    prompt: int
    output: int  # token lines


LENGTHS: Final = tuple(
    RequestLength(*length)
    for length in ((120, 255), (64, 85), (400, 340), (88, 51), (210, 289), (160, 374), (48, 204), (300, 408))
)
DEFAULT_MODEL: Final = "mixtral-8x7b"
TOKENS: Final = sum(length.output for length in LENGTHS)
RATES: Final = Rates(agreement=0.97, draft_accuracy=0.889, next_gate_accuracy=0.85, confidence_auc=0.9)
RATES_FROM: Final = (
    "agreement and draft accuracy as SP-MoE, arXiv 2510.10302, reports them over its own pairs of models; next_gate "
    "accuracy and AUC assumed"
)


def model_shape(model: Geometry) -> ModelShape:
    """What a trace says about `model`."""
    return ModelShape(
        model.name,
        model.layers,
        model.experts,
        model.top_k,
        model.expert_params,
        model.dense_params,
        model.kv_bytes_per_token,
    )


def draft_shape(draft: DraftModel) -> DraftShape:
    """What a trace says about `draft`."""
    return DraftShape(draft.name, draft.params, draft.active_params, draft.kv_bytes_per_token)


def request_lengths(tokens: int) -> list[RequestLength]:
    """Requests of `LENGTHS`, over and over, cut off after `tokens` token lines; InputError below 1."""
    if tokens < 1:
        raise InputError(f"field tokens: expected at least 1, got {tokens}")
    lengths: list[RequestLength] = []
    while tokens > 0:
        prompt, output = LENGTHS[len(lengths) % len(LENGTHS)]
        lengths.append(RequestLength(prompt, min(output, tokens)))
        tokens -= output
    return lengths


def synthetic_trace(
    model: ModelShape,
    draft: DraftShape | None,
    routing: SyntheticRouting,
    lengths: Sequence[RequestLength],
    rates: Rates,
    seed: int,
    rates_from: str = "",
) -> tuple[Header, Iterator[TraceLine]]:
    """A trace of requests of these lengths, each a prefill line and its token lines, one process throughout.

    Positions of token lines count on from the prompt.  The header repeats `rates_from`: where the rates are from, in
    words.  Raises InputError when `routing` has not the model's shape, and for a negative seed.
    """
    found = routing.statistics
    if (found.layers, found.experts, found.top_k) != (model.layers, model.experts, model.top_k):
        raise InputError(
            f"model {model.name}: expected statistics of {model.layers} layers, {model.experts} experts, top-"
            f"{model.top_k}, got {found.layers}, {found.experts}, top-{found.top_k}"
        )
    if seed < 0:
        raise InputError(f"field seed: expected an integer from 0 up, got {seed}")
    tokens = sum(length.output for length in lengths)
    header = Header(model, draft, _source(found.source, rates, seed, rates_from), tokens, rates.origins())
    return header, _lines(routing.tokens([sum(length) for length in lengths], seed), lengths, model, rates, seed)


def _lines(
    requests: Sequence[RoutedTokens], lengths: Sequence[RequestLength], model: ModelShape, rates: Rates, seed: int
) -> Iterator[TraceLine]:
    decoded = [request.experts[prompt:] for request, (prompt, _) in zip(requests, lengths, strict=True)]
    draws = draw(np.concatenate(decoded), model.experts, rates, seed)
    drawn = zip(draws.agree, draws.draft_prob, draws.forecasts, strict=True)
    brief = _brief()
    brief_list = brief.tolist()
    for number, (request, (prompt, _)) in enumerate(zip(requests, lengths, strict=True)):
        touched = [tuple(np.unique(request.experts[:prompt, layer]).tolist()) for layer in range(model.layers)]
        yield PrefillLine(number, prompt, tuple(touched))
        routed = request.experts[prompt:].tolist()
        weights = brief[np.rint(request.weights[prompt:] * ONE).astype(np.int64)].tolist()
        for offset, (cells, shares) in enumerate(zip(routed, weights, strict=True)):
            agree, draft_prob, forecasts = next(drawn)
            yield TokenLine(
                number,
                prompt + offset,
                tuple(map(tuple, cells)),
                agree,
                draft_prob,
                tuple(map(tuple, shares)),
                {
                    name: tuple(tuple((expert, brief_list[share]) for expert, share in forecast) for forecast in layers)
                    for name, layers in forecasts.items()
                },
            )


def _source(statistics: str, rates: Rates, seed: int, rates_from: str) -> Source:
    drawn = [f"agree at {rates.agreement}", f"draft_prob at AUC {rates.confidence_auc}"]
    drawn += [f"{name} forecasts at accuracy {rate}" for name, rate in rates.accuracies().items()]
    return Source(
        "synthetic",
        f"generated, with statistics of: {statistics}",
        "made by rule: the same command gives the same bytes at any time",
        f"spmoe.trace.synthetic with seed {seed}: routes and gate weights generated; drawn: {', '.join(drawn)}"
        + (f" ({rates_from})" if rates_from else ""),
        rates.agreement,
        seed,
    )


def _brief() -> NDArray[np.int64]:
    """For each probability 0..65536 the nearest one that is written with at most three decimals, to keep files small.

    More digits would say nothing, the values being drawn.
    """
    thousandths = np.arange(1001)
    nearest = (thousandths * ONE + 500) // 1000
    # The writer rounds to five decimals; only these come out as the thousandths they stand for.
    short = nearest[np.abs(nearest * 1000 - thousandths * ONE) * 200 < ONE]
    middles = (short[1:] + short[:-1]) / 2
    brief: NDArray[np.int64] = short[np.searchsorted(middles, np.arange(ONE + 1))]
    return brief


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit status 2 after one line on standard error for bad input."""
    parser = argparse.ArgumentParser(prog="python -m spmoe.trace.synthetic", description="Make a synthetic trace.")
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"one of {', '.join(geometry_names())}")
    parser.add_argument("--out", required=True, help="the file to write (.gz and .zst are compressed)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"token lines (default: {TOKENS})")
    options = parser.parse_args(arguments)
    try:
        model = geometry(options.model)
        header, lines = synthetic_trace(
            model_shape(model),
            None if model.draft is None else draft_shape(draft_model(model.draft)),
            SyntheticRouting(model_statistics(model)),
            request_lengths(options.tokens),
            RATES,
            options.seed,
            # The bundled Mixtral trace has no remark, so that its bytes stay.
            "" if model.name == DEFAULT_MODEL else RATES_FROM,
        )
        write_trace(options.out, header, lines)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
