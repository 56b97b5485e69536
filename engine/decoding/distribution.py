"""What a token is drawn from: the probabilities of a few tokens, or of all."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Distribution(NamedTuple):
    """`weights` (float64 [n], on the CPU) of the tokens `ids` (int64 [n], ascending; None: of all, in order).

    Others have none.
    """

    ids: torch.Tensor | None
    weights: torch.Tensor

    def of(self, token: int) -> float:
        """The weight of `token`."""
        if self.ids is None:
            return float(self.weights[token]) if token < len(self.weights) else 0.0
        return float(self.at(torch.tensor([token]))[0])

    def at(self, ids: torch.Tensor) -> torch.Tensor:
        """The weights of the tokens `ids`, ascending."""
        if self.ids is None:
            inside = ids < len(self.weights)
            return torch.where(inside, self.weights[ids.clamp(max=len(self.weights) - 1)], 0.0)
        places = torch.searchsorted(self.ids, ids).clamp_(max=len(self.ids) - 1)
        return torch.where(self.ids[places] == ids, self.weights[places], 0.0)

    def surplus(self, other: Distribution) -> Distribution:
        """max(self - other, 0), normalised.

        This one itself where that leaves nothing: the two then differ by rounding only.
        """
        rest = self.weights.clone()
        if self.ids is not None:
            rest -= other.at(self.ids)
        elif other.ids is not None:
            inside = other.ids < len(rest)
            rest[other.ids[inside]] -= other.weights[inside]
        else:
            shared = min(len(rest), len(other.weights))
            rest[:shared] -= other.weights[:shared]
        rest.clamp_(min=0)
        return Distribution(self.ids, rest / rest.sum()) if rest.any() else self

    def draw(self, number: float) -> int:
        """The token at `number`, at least 0 and below 1, of all weight."""
        sums = self.weights.cumsum(0)
        # The first whose sum exceeds a number below the total: one without weight cannot be it.
        place = torch.searchsorted(sums, number * sums[-1], right=True)
        return int(place if self.ids is None else self.ids[place])


def chance(target: Distribution, draft: Distribution, token: int) -> float:
    """With what probability `token`, drawn from `draft`, stands where the target draws from `target`: min(1, p / q)
    (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318)."""
    return min(1.0, target.of(token) / draft.of(token))
