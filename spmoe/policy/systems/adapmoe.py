"""How many slots each layer gets (AdapMoE, arXiv 2408.10284, its dynamic programme; commit 2cfe8df, `dp.py`).

With s of a layer's E experts resident, all equally likely to be needed, m of the k that a token needs are missing; m
is hypergeometric.  The next layer's gate fetches one missing expert in time with probability b, so the layer costs

    E[m] - b P(m >= 1) = k (1 - s/E) - b (1 - C(s, k)/C(E, k)).

For E = 8 and k = 2 that is the published P2 (2 - b) + P1 (1 - b), with P2 = (8 - s)(7 - s)/56 and P1 = 2s (8 - s)/56;
published is also a gated form, in which some tokens use one expert, which we leave out.  The first layer has b = 0, for
nothing is predicted across tokens.  Elsewhere the released code has a table of b per layer, measured on Mixtral; ours
is a constant, 0.8 by default, which is an assumption.

The cost is convex in s, since C(s, k) is.  So handing out slot by slot to where the next one saves most gives the
least sum of all, as the programme would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from math import comb

from spmoe.policy.parts.placement import LayerPools
from spmoe.state.keys import Shape


@dataclass(frozen=True, slots=True)
class LayerShares(LayerPools):
    """Slots of its own for every layer, where they save most loads; ties go to the first layers.

    `prefetch_accuracy` is b, as an integer /65536.  Every layer gets `minimum` slots first, or fewer where they do not
    suffice: the released code gives single slots too, in which it then computes with wrong weights.
    """

    prefetch_accuracy: int = 52429
    minimum: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.prefetch_accuracy <= 65536:
            raise ValueError("the accuracy of prefetches must be within 0..65536")
        if self.minimum < 1:
            raise ValueError("every layer needs a slot")

    def sizes(self, shape: Shape, slots: int) -> Sequence[int]:
        """How many of the slots each layer gets, at most one per expert; what is beyond all experts stays unused."""
        least = min(self.minimum, slots // shape.layers, shape.experts)
        sizes = [least] * shape.layers
        rest = slots - least * shape.layers
        savings = [(-self._saving(shape, layer, least), layer) for layer in range(shape.layers)]
        heapify(savings)
        while rest and savings:
            _, layer = savings[0]
            if sizes[layer] == shape.experts:
                heappop(savings)
                continue
            sizes[layer] += 1
            rest -= 1
            heapreplace(savings, (-self._saving(shape, layer, sizes[layer]), layer))
        return sizes

    def _saving(self, shape: Shape, layer: int, slots: int) -> int:
        """What one more slot saves the layer, in units of 1 / (65536 E C(E, k)): an integer, and never negative."""
        accuracy = self.prefetch_accuracy if layer else 0
        experts, top_k = shape.experts, shape.top_k
        return 65536 * top_k * comb(experts, top_k) - accuracy * experts * comb(slots, top_k - 1)
