"""A forward pass that goes on from a context."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import DynamicCache


class Forward:
    """Calls a causal language model of transformers, batch 1."""

    def __init__(self, model: Any) -> None:
        self._model = model
        # transformers calls it `cache` from 5.24 on, and warns of the old name.
        known = inspect.signature(model.forward).parameters
        self._context = "cache" if "cache" in known else "past_key_values"

    def __call__(self, inputs: torch.Tensor, context: DynamicCache, keep: int) -> torch.Tensor:
        """Reads `inputs` (int64 [1, T]) behind `context`, which grows by them; returns the logits [keep, vocabulary] of
        the last `keep`."""
        output = self._model(input_ids=inputs, use_cache=True, logits_to_keep=keep, **{self._context: context})
        logits: torch.Tensor = output.logits[0]
        return logits
