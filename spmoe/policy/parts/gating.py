"""Sensitivity-based gating (AdapMoE, arXiv 2408.10284): leave out an expert that a token hardly needs.

Lossy: the output is no longer that of the model.  A layer l drops the second expert of a token when its weight, both
weights scaled to sum to 1, is below sqrt(T / w_l), with T = 0.005 and w_l the layer's sensitivity.  The released code
(commit 2cfe8df) holds w_l of Mixtral-8x7B in a table, 46.7 in the first layer and 0.023 in the last, hence thresholds
of 0.0103 and 0.467.  We keep the two ends.  What lies between them is ours: the thresholds grow by the same factor from
layer to layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from spmoe.trace.gates import gate_of
from spmoe.trace.schema import RejectedLine, TokenLine


@dataclass(frozen=True, slots=True)
class SensitivityGate:
    """Drops the last expert of a token where its weight is below the layer's threshold.

    `first` and `last` are the thresholds (/65536) of the first and last layer, by default those of Mixtral-8x7B at
    T = 0.005.  The system gates only steps that verify a single token; callers must see to that.
    """

    first: int = 675
    last: int = 30605

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.last <= 65536:
            raise ValueError("the thresholds must be within 1..65536 and must not fall with depth")

    def threshold(self, layer: int, layers: int) -> int:
        """The threshold (/65536, rounded down) of a layer of so many: geometric between the ends."""
        return _between(self.first, self.last, layer, layers - 1) if layer else self.first

    def keeps(self, layer: int, layers: int, weights: tuple[int, ...]) -> int:
        """How many leading experts of a token compute.

        `weights` are those of its experts by rank (/65536); they need not sum to 1.  The published rule knows two
        experts per token.  Where there are more, we let it judge the last rank only, so at most one is dropped; a
        token's only expert always stays.
        """
        if len(weights) < 2:
            return len(weights)
        drops = weights[-1] * 65536 < self.threshold(layer, layers) * sum(weights)
        return len(weights) - drops


def thinned(line: TokenLine | RejectedLine, gate: SensitivityGate) -> TokenLine | RejectedLine:
    """The token with the experts that the gate keeps."""
    layers = len(line.routed)
    kept = []
    for layer, cell in enumerate(line.routed):
        weights = dict(gate_of(line, layer))
        kept.append(cell[: gate.keeps(layer, layers, tuple(weights[expert] for expert in cell))])
    return line._replace(routed=tuple(kept))


@cache
def _between(first: int, last: int, step: int, steps: int) -> int:
    """The largest t with t^steps <= first^(steps - step) last^step: the geometric mean, in integers only."""
    power = first ** (steps - step) * last**step
    low, high = first, last
    while low < high:
        middle = (low + high + 1) // 2
        if middle**steps <= power:
            low = middle
        else:
            high = middle - 1
    return low
