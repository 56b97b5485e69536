"""Routing that behaves like a real model's: what repeats, repeats as often and after as long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spmoe.trace.synthetic_statistics import RoutingStatistics

_MOST_CONTEXT: Final = 0.9  # a layer whose routing followed from the tokens before alone could not choose by token


class RoutedTokens(NamedTuple):
    """The routing of one request; both are [tokens, layers, top_k], by rank."""

    experts: NDArray[np.int64]
    weights: NDArray[np.float64]  # gate weights, sum 1 over the top k


class SyntheticRouting:
    """A generator of routing with the statistics of a real model.

    Text is a sequence of tokens: new ones are drawn from a Zipf vocabulary, and now and then a phrase from earlier in
    the request is repeated.  An expert's gate logit for a token is the sum of four parts, the last three normal with
    variances that add up to 1:

    - popularity: the expert's offset in this layer (the logit that this share of tokens exceeds);
    - identity: fixed per (token, layer, expert), so that a repeated token tends to be routed as before;
    - context: a decaying sum over the tokens so far of another such table.  It makes neighbours similar and repeated
      phrases nearly identical; its share follows the layer's measured persistence;
    - noise, independent.

    The top k logits are the routing, their softmax, at the layer's measured sharpness, the gate weights.
    """

    def __init__(self, statistics: RoutingStatistics) -> None:
        self.statistics = statistics
        fit = statistics.fit
        even = statistics.top_k / statistics.experts
        popularity = even + fit.popularity_weight * (np.array(statistics.popularity) - even)
        # The threshold that the chosen logits exceed is nearly the same for all experts of a layer, and what is common
        # to a layer changes nothing.
        self._offset = np.vectorize(NormalDist().inv_cdf)(popularity.clip(1e-4, 1 - 1e-4))
        context = (fit.context * (np.array(statistics.persistence) - even)).clip(0, _MOST_CONTEXT)[:, None]
        self._context = np.sqrt(context)
        self._identity = np.sqrt((1 - context) * fit.identity)
        self._noise = np.sqrt((1 - context) * (1 - fit.identity))
        self._scale = np.array(statistics.sharpness)[:, None] / _expected_gap(statistics.experts, statistics.top_k)
        frequencies = np.arange(1, fit.vocabulary + 1, dtype=np.float64) ** -fit.zipf
        self._vocabulary = np.cumsum(frequencies / frequencies.sum())[:-1]

    def tokens(self, lengths: Sequence[int], seed: int) -> list[RoutedTokens]:
        """The routing of requests of these lengths.

        The seed stands for the model's weights (the tables) as well as for the text.  The same seed gives the same
        requests: one more of them, or a longer last one, leaves the tokens before as they were.
        """
        weights, *texts = np.random.SeedSequence(seed).spawn(1 + len(lengths))
        shape = (2, self.statistics.fit.vocabulary, self.statistics.layers, self.statistics.experts)
        identity, context = np.random.default_rng(weights).standard_normal(shape, dtype=np.float32)
        return [
            self._request(length, identity, context, *map(np.random.default_rng, text.spawn(2)))
            for length, text in zip(lengths, texts, strict=True)
        ]

    def _request(
        self,
        length: int,
        identity: NDArray[np.float32],
        context: NDArray[np.float32],
        words: np.random.Generator,
        noise: np.random.Generator,
    ) -> RoutedTokens:
        memory = self.statistics.fit.memory
        fresh = math.sqrt(1 - memory * memory)
        state = noise.standard_normal(self._offset.shape)
        logits = np.empty((length, *self._offset.shape))
        for position, token in enumerate(self._text(length, words)):
            state = memory * state + fresh * context[token]
            logits[position] = self._identity * identity[token] + self._context * state
        logits += self._offset + self._noise * noise.standard_normal(logits.shape)
        experts = np.argsort(-logits, axis=2, kind="stable")[..., : self.statistics.top_k]
        chosen = self._scale * np.take_along_axis(logits, experts, axis=2)
        odds = np.exp(chosen - chosen[..., :1])
        return RoutedTokens(experts, odds / odds.sum(axis=2, keepdims=True))

    def _text(self, length: int, words: np.random.Generator) -> list[int]:
        """Token ids."""
        fit = self.statistics.fit
        variates = words.random((length, 3))
        drawn = np.searchsorted(self._vocabulary, variates[:, 2], side="right").tolist()
        text: list[int] = []
        source: int | None = None  # the earlier position that is being repeated
        for position, (change, where, _) in enumerate(variates.tolist()):
            if source is not None:
                source = None if change < 1 / fit.phrase else source + 1
            elif position and change < fit.repeat:
                source = int(where * position)
            text.append(drawn[position] if source is None else text[source])
        return text


def _expected_gap(experts: int, top_k: int) -> float:
    """The expected distance of the first from the k-th largest of so many standard normals (Blom 1958).

    1.0 at top-1, where a scale changes nothing.
    """
    if top_k == 1:
        return 1.0
    rank = NormalDist().inv_cdf
    return rank((experts - 0.375) / (experts + 0.25)) - rank((experts - top_k + 0.625) / (experts + 0.25))
