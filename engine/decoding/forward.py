"""A model's forward passes over one request, prepared as transformers' own `generate` prepares them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch

from engine.decoding.kv_cache import can_crop, crop, new_cache, record_past


class Forward:
    """Calls a causal language model of transformers, batch 1, and keeps what it has read of a request.

    Families differ in what a pass has to be given: positions, masks, or (phimoe, where a request outgrows the length
    that its model was first trained for) all tokens once more.  Their `prepare_inputs_for_generation` knows.
    """

    def __init__(self, model: Any, rolls_back: bool) -> None:
        """`rolls_back`: whether tokens are ever taken out of the context again."""
        self._model = model
        self._device: torch.device = model.get_input_embeddings().weight.device
        self._rolls_back = rolls_back
        known = inspect.signature(model.forward).parameters
        # transformers calls it `cache` from 5.24 on, and warns of the old name.
        self._cache_name = "cache" if "cache" in known else "past_key_values"
        self._has_positions = "position_ids" in known
        self._keeps = "logits_to_keep" in known
        self.begin()

    def begin(self) -> None:
        """A new request: nothing is in the context."""
        self._cache = new_cache(self._model)
        self._context: list[int] = []

    @property
    def length(self) -> int:
        """How many tokens are in the context."""
        return len(self._context)

    def __call__(self, tokens: Sequence[int], keep: int) -> torch.Tensor:
        """Reads `tokens` behind the context, which grows by them; returns the logits [keep, vocabulary] of the last
        `keep`."""
        context = [*self._context, *tokens]
        if self._rolls_back and self._context and self._cache is not None:
            record_past(self._cache)
        ids = torch.tensor([context], device=self._device)
        mask = torch.ones_like(ids)
        options: dict[str, Any] = {"attention_mask": mask, "use_cache": True}
        if self._cache is not None:
            options[self._cache_name] = self._cache
        if self._has_positions:
            options["position_ids"] = self._model._prepare_position_ids_for_generation(ids, options)
        if self._keeps:
            options["logits_to_keep"] = keep
        inputs = self._model.prepare_inputs_for_generation(
            ids,
            next_sequence_length=len(tokens) if self._context else None,
            is_first_iteration=not self._context,
            **options,
        )
        if self._keeps:
            inputs["logits_to_keep"] = keep  # Some families set it to 1, as `generate` never needs more.
        output = self._model(**inputs, return_dict=True)
        self._cache, self._context = output[self._cache_name], context
        logits: torch.Tensor = output.logits[0, -keep:]
        return logits

    def keep(self, tokens: Sequence[int]) -> None:
        """A new request that begins with `tokens`: what it has in common with the context stays there, but for its
        last token, or nothing where the rest cannot be taken out of the cache."""
        pairs = zip(self._context, tokens[:-1], strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        removed = len(self._context) - common
        if self._cache is None or (removed and not can_crop(self._cache, removed)):
            self.begin()
        elif removed:
            del self._context[common:]
            crop(self._cache, common)

    def forget(self, length: int) -> None:
        """Keeps the first `length` tokens of the context at most, and nothing of a pass that did not end."""
        del self._context[length:]
        if self._rolls_back and self._cache is not None:
            crop(self._cache, len(self._context))
