"""How likely the model finds what was put out, and what else might have come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class TokenLogprobs(NamedTuple):
    """A token, its log-probability, and the likeliest tokens there with theirs: of the model as it is, before
    penalties, temperature and the like."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def logprobs_of(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprobs]:
    """Of `tokens`, each at its row of `logits` [at least as many, vocabulary], and of the `top` likeliest there."""
    rows = logits[: len(tokens)].float().log_softmax(-1)
    chosen = rows.gather(1, torch.tensor(tokens, device=rows.device)[:, None])[:, 0].tolist()
    values, ids = rows.topk(min(top, rows.shape[1]))
    likeliest = [tuple(zip(*each, strict=True)) for each in zip(ids.tolist(), values.tolist(), strict=True)]
    return [TokenLogprobs(*each) for each in zip(tokens, chosen, likeliest, strict=True)]
