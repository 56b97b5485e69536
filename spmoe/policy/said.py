"""What the draft has said of a pass to come: layer by layer, token by token."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

import numpy as np

from spmoe.policy.row_similarity import Ints
from spmoe.policy.use_rates import ONE, WHOLE, Trust
from spmoe.state.events import Forecast
from spmoe.state.keys import Shape

_UNNAMED = ONE + 1
_NONE = np.array(0)


class Said:
    """Per layer the experts that forecasts name, and how many tokens have spoken of it.

    It is heard one expert at a time and asked about many at once: so its numbers lie in arrays of plain integers, which
    numpy sees as its own.
    """

    def __init__(self, shape: Shape) -> None:
        self._experts = shape.experts
        self._spared = array("q", [_UNNAMED]) * (shape.layers * shape.experts)
        """Per key, how sure the draft is (/`ONE`) that a named expert is *not* needed."""
        self._tokens = array("q", [0]) * shape.layers
        self._all_spared = np.frombuffer(self._spared, np.int64).reshape(shape.layers, shape.experts)
        self._all_tokens = np.frombuffer(self._tokens, np.int64)[:, np.newaxis]
        self._news: set[int] = set()

    def __contains__(self, layer: int) -> bool:
        return self._tokens[layer] > 0

    def layers(self) -> list[slice]:
        """Those of which it tells, in runs."""
        return runs([layer for layer, tokens in enumerate(self._tokens) if tokens])

    def hear(self, layer: int, forecasts: Sequence[Forecast], stands: int = ONE) -> None:
        """A token, which stands with that probability (/`ONE`), has spoken of `layer` and those after it."""
        spared, first = self._spared, layer * self._experts
        for forecast in forecasts:
            for expert, probability in forecast:
                before = spared[first + expert]
                if before == _UNNAMED:
                    before = ONE
                spared[first + expert] = before * (ONE - probability * stands // ONE) // ONE
            first += self._experts
        for at in range(layer, layer + len(forecasts)):
            self._tokens[at] += 1
            self._news.add(at)

    def news(self, until: int) -> list[slice]:
        """Those of the layers before `until` that were spoken of since this was last asked for, in runs."""
        news = runs(sorted([layer for layer in self._news if layer < until]))
        self._news.clear()
        return news

    def named(self, layer: int) -> Mapping[int, int]:
        """The experts named for a layer, and how sure the draft is (/`ONE`) that each is needed."""
        first = layer * self._experts
        spared = self._spared[first : first + self._experts]
        return {expert: ONE - sure for expert, sure in enumerate(spared) if sure != _UNNAMED}

    def needed(self, layers: slice, rates: Ints, trust: Trust, tokens: int) -> Ints:
        """How likely (/`ONE`) each expert of some layers is needed, [layers, experts], by the draft's word and the
        experts' `rates`.

        As long as not all of `tokens` have spoken, what they may still name comes by its rate.
        """
        tokens = max(tokens, 1)
        sure = WHOLE - self._all_spared[layers]
        chance = trust.named(sure)
        silent = WHOLE - WHOLE * np.minimum(self._all_tokens[layers], tokens) // tokens
        rest = trust.unnamed()
        unsaid = np.where(sure < _NONE, rest + (ONE - rest) * silent // WHOLE, silent)
        needed: Ints = chance + (WHOLE - chance) * (rates * unsaid // WHOLE) // WHOLE
        return needed

    def forget(self, layer: int) -> None:
        """The pass has come to that layer."""
        self._all_spared[layer] = _UNNAMED
        self._tokens[layer] = 0
        self._news.discard(layer)

    def clear(self) -> None:
        """Nothing was said."""
        self._all_spared.fill(_UNNAMED)
        self._all_tokens.fill(0)
        self._news.clear()


def runs(layers: Sequence[int]) -> list[slice]:
    """Ascending layers as runs of consecutive ones: those numpy takes from an array without looking for each."""
    found: list[slice] = []
    first = 0
    for end in range(1, len(layers) + 1):
        if end == len(layers) or layers[end] != layers[end - 1] + 1:
            found.append(slice(layers[first], layers[end - 1] + 1))
            first = end
    return found
