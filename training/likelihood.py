"""How likely a model finds text, in nats per token."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

BATCH = 8
"""Windows that go through a model at once."""


@torch.inference_mode()
def loss(model: Any, windows: torch.Tensor) -> float:
    """Mean nats per token on `windows`, int64 [windows, context + 1]."""
    return sum(nats(model(input_ids=part[:, :-1]).logits, part) for part in windows.split(BATCH)) / predicted(windows)


def nats(logits: torch.Tensor, windows: torch.Tensor) -> float:
    """The sum over tokens, from `logits` [windows, context, vocabulary]."""
    return float(cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten(), reduction="sum"))


def predicted(windows: torch.Tensor) -> int:
    """How many tokens of `windows`, [windows, context + 1], are predicted."""
    return windows[:, 1:].numel()


def spread(windows: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of the windows, evenly spaced over all; all where there are fewer."""
    return windows[[number * len(windows) // count for number in range(count)]] if count < len(windows) else windows
