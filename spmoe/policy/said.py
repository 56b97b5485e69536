"""What the draft has said of a pass to come: layer by layer, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from spmoe.policy.row_similarity import Ints
from spmoe.policy.use_rates import ONE, Trust
from spmoe.state.events import Forecast


class Said:
    """Per layer the experts that forecasts name, and how many tokens have spoken of it."""

    def __init__(self) -> None:
        self._spared: dict[int, dict[int, int]] = {}
        """How sure the draft is (/`ONE`) that a named expert is *not* needed."""
        self._tokens: dict[int, int] = {}
        self._news: set[int] = set()

    def __len__(self) -> int:
        """Of how many layers it tells."""
        return len(self._spared)

    def __contains__(self, layer: int) -> bool:
        return layer in self._spared

    def __iter__(self) -> Iterator[int]:
        return iter(self._spared)

    def hear(self, layer: int, forecasts: Sequence[Forecast], stands: int = ONE) -> None:
        """A token, which stands with that probability (/`ONE`), has spoken of `layer` and those after it."""
        for at, forecast in enumerate(forecasts, layer):
            spared = self._spared.setdefault(at, {})
            self._tokens[at] = self._tokens.get(at, 0) + 1
            self._news.add(at)
            for expert, probability in forecast:
                spared[expert] = spared.get(expert, ONE) * (ONE - probability * stands // ONE) // ONE

    def news(self) -> list[int]:
        """The layers spoken of since this was last asked for."""
        news = sorted(self._news)
        self._news.clear()
        return news

    def named(self, layer: int) -> Mapping[int, int]:
        """The experts named for a layer, and how sure the draft is (/`ONE`) that each is needed."""
        return {expert: ONE - spared for expert, spared in self._spared.get(layer, {}).items()}

    def needed(self, layer: int, rates: Ints, trust: Trust, tokens: int) -> Ints:
        """How likely (/`ONE`) each expert of a layer is needed, by the draft's word and the experts' `rates`.

        As long as not all of `tokens` have spoken, what they may still name comes by its rate.
        """
        tokens = max(tokens, 1)
        silent = ONE - ONE * min(self._tokens[layer], tokens) // tokens
        rest = trust.unnamed()
        needed: Ints = rates * (rest + (ONE - rest) * silent // ONE) // ONE
        for expert, spared in self._spared[layer].items():
            chance = trust.named(ONE - spared)
            needed[expert] = chance + (ONE - chance) * (int(rates[expert]) * silent // ONE) // ONE
        return needed

    def forget(self, layer: int) -> None:
        """The pass has come to that layer."""
        self._spared.pop(layer, None)
        self._tokens.pop(layer, None)
        self._news.discard(layer)

    def clear(self) -> None:
        """Nothing was said."""
        self._spared.clear()
        self._tokens.clear()
        self._news.clear()
