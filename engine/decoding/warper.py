"""From logits to what a token is drawn from, by the rules of a request.

The rules and their order are transformers': penalties, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from functools import cached_property
from typing import Final

import torch

from engine.decoding.distribution import Distribution
from engine.decoding.sampling import Sampling


class History:
    """The tokens before a place, of which the first `prompt` are the prompt's."""

    def __init__(self, tokens: Sequence[int], prompt: int) -> None:
        self.tokens = tokens
        self.prompt = prompt

    @cached_property
    def ids(self) -> torch.Tensor:
        """The tokens as a tensor (int64)."""
        return torch.tensor(self.tokens, dtype=torch.int64)

    def then(self, tokens: Sequence[int]) -> History:
        """With `tokens` behind them."""
        behind = History([*self.tokens, *tokens], self.prompt)
        behind.ids = torch.cat((self.ids, torch.tensor(tokens, dtype=torch.int64)))  # A long text is read once.
        return behind


EMPTY: Final = History((), 0)
NUCLEUS: Final = 1024
"""So many of the likeliest tokens are looked at first: as a rule they have the probability asked for together."""


class Warper:
    """Applies the rules of one request to the logits of one place."""

    def __init__(self, sampling: Sampling, ends: Set[int] = frozenset()) -> None:
        """`ends`: the tokens that end a sequence."""
        self._sampling = sampling
        self._ends = sorted(ends)

    @property
    def looks_back(self) -> bool:
        """Whether what came before a place makes a difference there."""
        return self._sampling.penalises or bool(self._sampling.min_tokens and self._ends)

    def processed(self, logits: torch.Tensor, history: History) -> torch.Tensor:
        """`logits` [ids] after penalties, of which those of 16 bits become wider; the same where there are none."""
        if not self.looks_back:
            return logits
        sampling, count = self._sampling, len(logits)
        row: torch.Tensor = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
        if sampling.repetition_penalty != 1:
            seen = history.ids[history.ids < count].to(row.device)
            scores = row[seen]  # A token that came twice gets the same value twice.
            penalty = sampling.repetition_penalty
            row[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
        if sampling.presence_penalty or sampling.frequency_penalty:
            output, times = history.ids[history.prompt :].unique(return_counts=True)
            times = (sampling.presence_penalty + sampling.frequency_penalty * times.double())[output < count]
            row[output[output < count].to(row.device)] -= times.to(row)
        if len(history.tokens) - history.prompt < sampling.min_tokens:
            row[[end for end in self._ends if end < count]] = -math.inf
        return row

    def distribution(self, logits: torch.Tensor, history: History = EMPTY) -> Distribution:
        """What a token is drawn from at a place with `logits` [ids]; not for greedy decoding."""
        sampling = self._sampling
        row = self.processed(logits, history)
        ids = None
        if 0 < sampling.top_k < len(row):
            # Of those as likely as the last of them none is left out, as in transformers.
            ids = (row >= row.topk(sampling.top_k).values[-1]).nonzero()[:, 0]
            row, ids = row[ids], ids.cpu()
        wide = row.to("cpu", torch.float64)
        # The largest becomes 0 first: a tiny temperature must not divide to infinity.
        weights = ((wide - wide.max()) / sampling.temperature).softmax(-1)
        if sampling.top_p < 1:
            ids, weights = _only(ids, weights, _nucleus(weights, sampling.top_p))
        if sampling.min_p > 0:
            ids, weights = _only(ids, weights, (weights >= sampling.min_p * weights.max()).nonzero()[:, 0])
        return Distribution(ids, weights / weights.sum())


def _only(
    ids: torch.Tensor | None, weights: torch.Tensor, places: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Those at `places`, ascending; all stay as they are where it is all."""
    if len(places) == len(weights):
        return ids, weights
    return places if ids is None else ids[places], weights[places]


def _nucleus(weights: torch.Tensor, share: float) -> torch.Tensor:
    """The places of the fewest largest `weights` that together have that share of all, ascending."""
    most = weights.topk(min(NUCLEUS, len(weights)))
    if float(most.values.sum()) <= share:
        most = weights.topk(len(weights))
    before = most.values.cumsum(0) - most.values
    return most.indices[before < share].sort().values
