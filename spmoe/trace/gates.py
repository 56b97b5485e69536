"""Gate probabilities of tokens, as far as a trace has them."""

from __future__ import annotations

from spmoe.trace.schema import ONE, Cell, Forecast, RejectedLine, TokenLine


def gate_of(line: TokenLine | RejectedLine, layer: int) -> Forecast:
    """The gate's probabilities of one token by rank: all of them where the trace has them, else its experts' weights.

    Where it has no weights either, its experts count alike.
    """
    cell = line.routed[layer]
    if isinstance(line, TokenLine) and line.gate_probs is not None and line.gate_probs[layer]:
        return tuple(sorted(enumerate(line.gate_probs[layer]), key=lambda pair: (-pair[1], pair[0])))
    if line.weights is not None and line.weights[layer]:
        return tuple(zip(cell, line.weights[layer], strict=True))
    return even_gate(cell)


def even_gate(experts: Cell) -> Forecast:
    """Experts that count alike: of a token whose weights are unknown, or in place of all tokens of a prompt."""
    return tuple((expert, ONE // len(experts)) for expert in experts)
