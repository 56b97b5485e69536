"""The draft model: proposes tokens, and shows on the way what the target will need (SP-MoE, arXiv 2510.10302).

The residual stream behind the attention of a draft layer goes through the norm and the router of the target's matching
layer while the draft runs, so that prefetches start before the first token is drafted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from engine.decoding.forced_routing import Script
from engine.decoding.forward import Forward
from engine.decoding.recorder import Recorder
from engine.decoding.sampler import Proposal, Sampler
from engine.decoding.to_host import forecasts, read
from engine.moe.layers import MoeLayer, attention_norm
from spmoe.drive.step import DraftLayers
from spmoe.errors import InputError
from spmoe.state.events import Forecast
from spmoe.trace.schema import ONE

REVIEW = 256
"""Tokens that a review reads at once: bounds the memory that their logits take."""


class Asker(Protocol):
    """Whose effects a pass of the draft answers on its way."""

    @property
    def asked(self) -> Any:
        """The effect that is asked for."""

    def answer(self, value: Any) -> None:
        """It is done, and this came of it."""

    def look(self) -> None:
        """A good moment to see what arrived."""


class Draft:
    """A model, as a rule a dense one, beside the target on the same device."""

    def __init__(
        self,
        model: Any,
        layers: tuple[MoeLayer, ...],
        layer_map: tuple[int, ...] | None,
        predicted: int,
        recorder: Recorder | None,
        script: Script | None = None,
    ) -> None:
        """`layer_map`: for each of the target's MoE layers the draft layer whose states stand for its own; None where
        the draft's states say nothing.  `predicted`: for how many leading layers the policy wants forecasts.  With a
        `script`, its forecasts take the place of the draft's."""
        self._run = Forward(model)
        self._device = next(model.parameters()).device
        self._asker: Asker | None = None
        """Who has asked for the pass under way; None where it is a review's."""
        self._layers = layers
        self._recorder = recorder
        self._script = script
        self._cache = DynamicCache()
        self._seen = 0
        """Tokens of the request that are in the cache."""
        self._wanted = 0 if layer_map is None else len(layers) if recorder else predicted
        self._found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Of the pass under way, per target layer: experts and probabilities [rows, k]."""
        self._rows = 1
        """Of how many of the pass's last tokens forecasts are made."""
        self._vocabulary: int = model.get_input_embeddings().num_embeddings
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        for number, norm in enumerate(draft_norms(model)):
            wanted = () if layer_map is None else layers[: self._wanted]
            fitting = [layer for layer in wanted if layer_map is not None and layer_map[layer.index] == number]
            self._hooks.append(norm.register_forward_pre_hook(partial(self._passed, fitting)))

    def begin(self) -> None:
        """A new request: nothing is in the context."""
        self._cache = DynamicCache()
        self._seen = 0

    def propose(self, tokens: Sequence[int], sampler: Sampler, asker: Asker) -> Proposal:
        """Proposes what follows `tokens`, all of the request so far; answers with forecasts where it is asked for them.

        Where the asker raises, and leaves the pass half done, `forget` takes back what it was reading.
        """
        self._found.clear()
        self._rows = 1
        self._asker = asker
        proposal = sampler.propose(self._forward(tokens[self._seen :])[-1])
        if self._recorder is not None:
            forecasts = self._forecasts(0, len(self._layers))[0] if self._wanted else None
            self._recorder.drafted(share(proposal.probability), forecasts)
        return proposal

    def forget(self, length: int) -> None:
        """Keeps the first `length` tokens of the request at most, and of those that were being read none."""
        self._seen = min(self._seen, length)
        layers: list[Any] = self._cache.layers
        for layer in layers:
            if (excess := layer.get_seq_length() - self._seen) > 0:
                layer.crop(-excess)

    def review(self, tokens: Sequence[int]) -> list[tuple[int, int, tuple[Forecast, ...] | None]]:
        """For each token of a finished request: what the draft would have proposed next, the probability (/65536), and
        its forecasts for all layers (None where its states say nothing)."""
        self.begin()
        self._asker = None
        seen: list[tuple[int, int, tuple[Forecast, ...] | None]] = []
        for start in range(0, len(tokens), REVIEW):
            part = tokens[start : start + REVIEW]
            self._found.clear()
            self._rows = len(part)
            probabilities, proposed = self._forward(part, len(part)).float().softmax(-1).max(-1)
            shares = list(map(share, probabilities.tolist()))
            rows = self._forecasts(0, len(self._layers)) if self._wanted else [None] * len(part)
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
        inputs = torch.tensor([tokens], device=self._device).clamp_(max=self._vocabulary - 1)
        logits = self._run(inputs, self._cache, keep)
        self._seen += len(tokens)
        return logits

    def _passed(self, fitting: Sequence[MoeLayer], _norm: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        """A draft layer's attention is done: forecasts for the target layers that it stands for, if any, and a look at
        what arrived."""
        asker = self._asker
        if fitting and (self._recorder is not None or (asker is not None and type(asker.asked) is DraftLayers)):
            residual = arguments[0][0, -self._rows :]
            for layer in fitting:
                self._found[layer.index] = layer.forecast(residual)
        if asker is not None:
            while type(asked := asker.asked) is DraftLayers and self._has(asked):
                asker.answer(self._spoken(asked))
            asker.look()

    def _forecasts(self, first: int, end: int) -> list[tuple[Forecast, ...]]:
        """Per row, the forecasts for layers `first` to `end` (exclusive)."""
        found = [self._found[layer] for layer in range(first, end)]
        # Rows first, then layers: [rows, layers, k].
        values = read([torch.stack([each[part] for each in found], 1) for part in (0, 1)])
        return forecasts(*values)

    def _spoken(self, asked: DraftLayers) -> tuple[Forecast, ...]:
        """The forecasts that were asked for, or what the script has in their place."""
        found = self._forecasts(asked.first, asked.end)[0]
        return found if self._script is None else self._script.forecasts(asked.token, asked.first, asked.end)

    def _has(self, asked: DraftLayers) -> bool:
        """Whether all that was asked for is there: the last layer as a rule comes last."""
        found = self._found
        return asked.end - 1 in found and all(layer in found for layer in range(asked.first, asked.end))


def share(probability: float) -> int:
    """Over 65536."""
    return min(ONE, int(probability * ONE + 0.5))


def draft_norms(model: Any) -> list[torch.nn.Module]:
    """The norm behind the attention of every decoder layer; empty where the family calls it otherwise."""
    layers = getattr(getattr(model, "model", None), "layers", ())
    norms = [attention_norm(layer) for layer in layers]
    return [norm for norm in norms if norm is not None] if all(norms) else []


def match_layers(
    layers: tuple[MoeLayer, ...], depth: int, width: int, model: Any, given: Sequence[int] | None
) -> tuple[tuple[int, ...] | None, str]:
    """For each MoE layer of a target with `depth` layers of `width` the matching layer of the draft `model`.

    None, and why, where the draft's states cannot go through the target's routers: `given` by the user is a map that
    fits another depth, but nothing helps against another width.  Raises InputError for a map that does not fit.
    """
    config = model.config.get_text_config()
    norms = draft_norms(model)
    if given is not None and (len(given) != len(layers) or not all(0 <= number < len(norms) for number in given)):
        raise InputError(
            f"layer map: expected {len(layers)} numbers of draft layers within 0..{len(norms) - 1}, "
            f"got {','.join(map(str, given))}"
        )
    if config.hidden_size != width:
        return None, f"the draft is {config.hidden_size} wide, the target {width}"
    if not norms or any(layer.norm is None for layer in layers):
        return None, "the norm behind attention was not found in both models"
    if given is not None:
        return tuple(given), ""
    if len(norms) != depth:
        return None, f"the draft has {len(norms)} layers, the target {depth}; a layer map would match them"
    return tuple(layer.decoder_layer for layer in layers), ""
