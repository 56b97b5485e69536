"""The beginning of a trace, of models of one's own choosing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from spmoe.errors import InputError
from spmoe.trace.schema import DraftShape, ModelShape, PrefillLine, TokenLine, Trace, TraceInMemory


def excerpt(trace: Trace, tokens: int | None, model: ModelShape, draft: DraftShape | None) -> TraceInMemory:
    """The first `tokens` token lines of `trace` (None: all), with `model` and `draft` in place of its own.

    Raises InputError where the trace has fewer lines, where it is of a model of another shape, and where it does not
    tell all experts of each token.
    """
    header = trace.header
    own = header.model
    if (own.layers, own.experts, own.top_k) != (model.layers, model.experts, model.top_k):
        raise InputError(
            f"model {model.name}: expected {own.layers} MoE layers of {own.experts} experts, top-{own.top_k}, as the "
            f"trace of {own.name} has; got {model.layers} of {model.experts}, top-{model.top_k}"
        )
    if tokens is not None and not 1 <= tokens <= header.tokens:
        raise InputError(f"tokens: expected 1 to {header.tokens}, as many as the trace has, got {tokens}")
    lines = tuple(_first(trace, header.tokens if tokens is None else tokens))
    for line in lines:
        if isinstance(line, TokenLine) and any(len(cell) != model.top_k for cell in line.routed):
            raise InputError(
                f"the trace does not tell all {model.top_k} experts of the token at position {line.position} of "
                f"request {line.request}"
            )
    count = sum(isinstance(line, TokenLine) for line in lines)
    return TraceInMemory(replace(header, model=model, draft=draft, tokens=count), lines)


def _first(trace: Trace, tokens: int) -> Iterator[PrefillLine | TokenLine]:
    """A prompt without a token behind it is left out."""
    prompt: PrefillLine | None = None
    for line in trace:
        if isinstance(line, PrefillLine):
            prompt = line
            continue
        if prompt is not None:
            yield prompt
            prompt = None
        yield line
        tokens -= 1
        if not tokens:
            return
