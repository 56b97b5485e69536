"""The draft's forecasts for a pass to come, layer by layer, token by token."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from spmoe.policy.foresight.use_rates import Trust
from spmoe.policy.parts.fixed_point import ONE, SHIFT, WHOLE, Ints
from spmoe.state.events import Forecast
from spmoe.state.keys import Shape

_SIGN = np.array(63)


class DraftEvidence:
    """Per layer the experts that forecasts name, and how many tokens have forecasts for it.

    It is written one expert at a time and read many at once: so its numbers lie in arrays of plain integers, which
    numpy sees as its own.
    """

    def __init__(self, shape: Shape) -> None:
        self._experts = shape.experts
        self._named: list[dict[int, int]] = [{} for _ in range(shape.layers)]
        """Per layer, how sure the draft is (/`ONE`) that experts are needed that it names."""
        self._sure = array("q", [-1]) * (shape.layers * shape.experts)
        """The same per key, and -1 for those that it does not name."""
        self._tokens = array("q", [0]) * shape.layers
        self._all_sure = np.frombuffer(self._sure, np.int64).reshape(shape.layers, shape.experts)
        self._all_tokens = np.frombuffer(self._tokens, np.int64)
        self._news: set[int] = set()

    def __contains__(self, layer: int) -> bool:
        return self._tokens[layer] > 0

    def layers(self) -> list[slice]:
        """Those that it has forecasts for, in runs."""
        return runs([layer for layer, tokens in enumerate(self._tokens) if tokens])

    def record(self, layer: int, forecasts: Sequence[Forecast], stands: int = ONE) -> None:
        """Add the forecasts of a token, accepted with that probability (/`ONE`), for `layer` and those after it."""
        sure, tokens, news = self._sure, self._tokens, self._news
        for at, forecast in enumerate(forecasts, layer):
            named, first = self._named[at], at * self._experts
            for expert, probability in forecast:
                spared = (ONE - named.get(expert, 0)) * (ONE - probability * stands // ONE) // ONE
                named[expert] = sure[first + expert] = ONE - spared
            tokens[at] += 1
            news.add(at)

    def news(self, until: int) -> list[slice]:
        """Those of the layers before `until` with new forecasts since this was last asked for, in runs."""
        news = runs(sorted([layer for layer in self._news if layer < until]))
        self._news.clear()
        return news

    def named(self, layer: int) -> Mapping[int, int]:
        """The experts named for a layer, and how sure the draft is (/`ONE`) that each is needed."""
        return self._named[layer]

    def needed(self, layers: slice, rates: Ints, trust: Trust, tokens: int) -> Ints:
        """How likely (/`ONE`) each expert of some layers is needed, [layers, experts], by the draft's forecasts and
        the experts' `rates`.

        As long as some of `tokens` have no forecasts yet, what they may still name comes by its rate.
        """
        sure = self._all_sure[layers]
        chance = trust.named(sure)
        # One number per expert, not per layer: numpy reckons several times faster with arrays of one shape.
        known = self._all_tokens[layers].repeat(self._experts).reshape(sure.shape)
        without = _share_without(max(tokens, 1)).take(known, mode="clip")
        rest = np.array(trust.unnamed())
        unnamed = rest + ((WHOLE - rest) * without >> SHIFT)
        by_rate = without + ((unnamed - without) & (sure >> _SIGN))
        needed: Ints = chance + ((WHOLE - chance) * (rates * by_rate >> SHIFT) >> SHIFT)
        return needed

    def forget(self, layer: int) -> None:
        """The pass has come to that layer."""
        self._named[layer] = {}
        self._all_sure[layer] = -1
        self._tokens[layer] = 0
        self._news.discard(layer)

    def clear(self) -> None:
        """Forget all forecasts."""
        self._named = [{} for _ in self._named]
        self._all_sure.fill(-1)
        self._all_tokens.fill(0)
        self._news.clear()


@cache
def _share_without(tokens: int) -> Ints:
    """Which share (/`ONE`) of `tokens` has no forecasts, by how many have."""
    return np.array([ONE - ONE * known // tokens for known in range(tokens + 1)])


def runs(layers: Sequence[int]) -> list[slice]:
    """Ascending layers as runs of consecutive ones: those numpy takes from an array without looking for each."""
    found: list[slice] = []
    first = 0
    for end in range(1, len(layers) + 1):
        if end == len(layers) or layers[end] != layers[end - 1] + 1:
            found.append(slice(layers[first], layers[end - 1] + 1))
            first = end
    return found
