"""Token streams, and which part of them a step learns from."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from training.corpus import Corpus
from training.recipe import Recipe
from training.tokenizer import encode


class Tokens(NamedTuple):
    """Files one after the other, int16 [tokens]."""

    learned: torch.Tensor
    held_out: torch.Tensor


def tokenise(tokenizer: Any, corpus: Corpus) -> Tokens:
    """The tokens of `corpus`, of at most 2^15 different ones."""
    return Tokens(
        *(torch.tensor(encode(tokenizer, part), dtype=torch.int16) for part in (corpus.learned, corpus.held_out))
    )


def windows(stream: torch.Tensor, context: int) -> torch.Tensor:
    """The whole stream in windows, int64 [windows, context + 1]: each ends with the token that the next begins with."""
    return stream.unfold(0, context + 1, context).long()


class Batches:
    """The windows of each step, in an order that is drawn anew every time that all were read.

    A function of recipe and step alone: where a run stands in the data is the number of its step.
    """

    def __init__(self, stream: torch.Tensor, recipe: Recipe) -> None:
        """`stream` is int16 [tokens], at least two windows long."""
        self._stream = stream
        self._recipe = recipe
        # Each epoch begins elsewhere within the first window, so that windows do not repeat.
        self._count = len(stream) // recipe.context - 1
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def at(self, step: int) -> torch.Tensor:
        """The windows of a step, int64 [batch, context + 1]; steps count from the dense model's first."""
        recipe = self._recipe
        rows = []
        for place in range(step * recipe.batch, (step + 1) * recipe.batch):
            epoch, number = divmod(place, self._count)
            offset, order = self._epoch(epoch)
            start = offset + int(order[number]) * recipe.context
            rows.append(self._stream[start : start + recipe.context + 1])
        return torch.stack(rows).long()

    def _draw(self, epoch: int) -> tuple[int, torch.Tensor]:
        generator = torch.Generator().manual_seed(self._recipe.seed_of(f"order/{epoch}"))
        offset = int(torch.randint(self._recipe.context, (), generator=generator))
        return offset, torch.randperm(self._count, generator=generator)
