"""How often a predictor of experts is right."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Accuracy(NamedTuple):
    """Means over tokens.

    `top1_used`: the first expert named is among the k used; `top1_exact`: it is the first of them.  `recall`: share of
    the experts used that are among k named; `recall_one_more`, `recall_two_more`: among k + 1, k + 2 named.
    """

    top1_used: float
    top1_exact: float
    recall: float
    recall_one_more: float
    recall_two_more: float


class Score:
    """Sums over the tokens of one layer."""

    def __init__(self) -> None:
        self._sums = torch.zeros(len(Accuracy._fields), dtype=torch.float64)
        self._tokens = 0

    def count(self, order: torch.Tensor, used: torch.Tensor) -> None:
        """`order` int64 [T, experts], the likeliest first; `used` int64 [T, k] by rank."""
        k = used.shape[-1]
        right = (order[:, : k + 2, None] == used[:, None, :]).any(-1).double()
        shares = [right[:, : k + more].sum(-1) / k for more in range(3)]
        found = torch.stack([right[:, 0], (order[:, 0] == used[:, 0]).double(), *shares])
        self._sums += found.sum(-1)
        self._tokens += len(used)

    def result(self) -> Accuracy:
        """The means so far, of at least one token."""
        return Accuracy(*(self._sums / self._tokens).tolist())


def mean(several: list[Accuracy]) -> Accuracy:
    """Of at least one."""
    return Accuracy(*(sum(each) / len(several) for each in zip(*several, strict=True)))
