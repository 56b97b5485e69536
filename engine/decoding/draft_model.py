"""The draft model: proposes tokens, and shows on the way what the target will need (SP-MoE, arXiv 2510.10302).

The residual stream behind the attention of a draft layer goes through the norm and the router of the target's matching
layer while the draft runs, so that prefetches start before the first token is drafted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from engine.decoding.forward import Forward
from engine.decoding.layer_map import draft_norms
from engine.decoding.to_host import fixed_point, forecasts, read
from engine.execution.coroutine import Coroutine, suspend
from engine.moe.layers import MoeLayer
from spmoe.state.events import Forecast

REVIEW = 256
"""Tokens that a review reads at once: bounds the memory that their logits take."""

Poll = Callable[[], None]
"""Called at every layer of a pass: a good moment to look at what has arrived."""


Review = Callable[[Sequence[int]], list[tuple[int, int, tuple[Forecast, ...] | None]]]
"""`DraftModel.review`."""


class DraftModel:
    """A model, as a rule a dense one, beside the target on the same device.

    Its forward pass is a coroutine, which suspends behind the attention of every layer.
    """

    def __init__(
        self,
        model: Any,
        layers: tuple[MoeLayer, ...],
        layer_map: tuple[int, ...] | None,
        predicted: int,
        recorded: bool = False,
    ) -> None:
        """`layer_map`: for each of the target's MoE layers the draft layer whose states stand for its own; None where
        the draft's states tell nothing.  `predicted`: for how many leading layers the policy needs forecasts.  With
        `recorded`, every pass makes those of all layers."""
        self._run = Forward(model, rolls_back=True)
        self._recorded = recorded
        self._pass: Coroutine | None = None
        """The pass under way."""
        self._forecasting = recorded
        """Whether it makes forecasts."""
        self._layers = len(layers)
        self._predicted = 0 if layer_map is None else len(layers) if recorded else predicted
        self._found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Of the pass under way, per target layer: experts and probabilities [rows, k]."""
        self._rows = 1
        """Of how many of the pass's last tokens forecasts are made."""
        self._vocabulary: int = model.get_input_embeddings().num_embeddings
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        matched = [] if layer_map is None else list(zip(layers, layer_map, strict=True))[: self._predicted]
        for number, norm in enumerate(draft_norms(model)):
            matching = [layer for layer, own in matched if own == number]
            self._hooks.append(norm.register_forward_pre_hook(partial(self._layer_reached, matching)))

    def begin(self, kept: Sequence[int] = ()) -> None:
        """A new request: nothing is in the context but what it has in common with `kept`."""
        if kept:
            self._run.keep(kept)
        else:
            self._run.begin()

    @property
    def running(self) -> bool:
        """Whether a pass is under way."""
        return self._pass is not None

    def start(self, tokens: Sequence[int]) -> None:
        """Begins a pass that reads what it has not read of `tokens`, all of the request so far."""
        self._found.clear()
        self._rows = 1
        self._pass = Coroutine(partial(self._forward, tokens[self._run.length :]))

    def forecasts(self, first: int, end: int, poll: Poll) -> tuple[Forecast, ...]:
        """Goes on with the pass until it has forecasts for layers `first` to `end` (exclusive), and returns them."""
        assert self._pass is not None
        self._forecasting = True
        while not self._has(first, end):
            self._pass.resume()
            poll()
        return self._forecasts(first, end)[0]

    def logits(self, poll: Poll) -> torch.Tensor:
        """Goes on to the pass's end; returns the logits [vocabulary] of the last token."""
        assert self._pass is not None
        self._forecasting = self._recorded
        logits: torch.Tensor = self._pass.resume()
        while not self._pass.over:
            poll()
            logits = self._pass.resume()
        self._pass = None
        return logits[-1]

    def all_forecasts(self) -> tuple[Forecast, ...] | None:
        """Those of the last pass for all layers, where it was recorded; None where the draft's states tell nothing."""
        return self._forecasts(0, self._layers)[0] if self._predicted else None

    def cancel(self) -> None:
        """Drops the pass under way, if any; `forget` takes what it was reading out of the context."""
        if self._pass is not None:
            self._pass.cancel()
            self._pass = None

    def forget(self, length: int) -> None:
        """Keeps the first `length` tokens of the request at most, and of those that were being read none."""
        self._run.forget(length)

    def review(self, tokens: Sequence[int]) -> list[tuple[int, int, tuple[Forecast, ...] | None]]:
        """For each token of a finished request: what the draft would have proposed next, the probability (/65536), and
        its forecasts for all layers (None where its states tell nothing)."""
        self.begin()
        seen: list[tuple[int, int, tuple[Forecast, ...] | None]] = []
        for start in range(0, len(tokens), REVIEW):
            part = tokens[start : start + REVIEW]
            self._found.clear()
            self._rows = len(part)
            probabilities, proposed = self._forward(part, len(part)).float().softmax(-1).max(-1)
            shares = list(map(fixed_point, probabilities.tolist()))
            rows = self._forecasts(0, self._layers) if self._predicted else [None] * len(part)
            seen += zip(proposed.tolist(), shares, rows, strict=True)
        self.begin()
        return seen

    def release(self) -> None:
        """Lets go of everything, since the model's layers know this object: it cannot be used any more."""
        for hook in self._hooks:
            hook.remove()
        self.__dict__.clear()

    def _forward(self, tokens: Sequence[int], keep: int = 1) -> torch.Tensor:
        # A token that only the target has (vocabularies are padded) is read as another: the guess is worse, no more.
        return self._run([min(token, self._vocabulary - 1) for token in tokens], keep)

    def _layer_reached(
        self, matching: Sequence[MoeLayer], _norm: torch.nn.Module, arguments: tuple[torch.Tensor, ...]
    ) -> None:
        """A draft layer's attention is done: forecasts for the target layers that it stands for, if any."""
        if matching and self._forecasting:
            residual = arguments[0][0, -self._rows :]
            for layer in matching:
                self._found[layer.index] = layer.forecast(residual)
        if self._pass is not None:
            suspend()

    def _forecasts(self, first: int, end: int) -> list[tuple[Forecast, ...]]:
        """Per row, the forecasts for layers `first` to `end` (exclusive)."""
        found = [self._found[layer] for layer in range(first, end)]
        # Rows first, then layers: [rows, layers, k].
        values = read([torch.stack([each[part] for each in found], 1) for part in (0, 1)])
        return forecasts(*values)

    def _has(self, first: int, end: int) -> bool:
        """Whether all of these forecasts are made: that for the last layer as a rule comes last."""
        return end - 1 in self._found and all(layer in self._found for layer in range(first, end))
