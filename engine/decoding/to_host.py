"""From the device to plain numbers, with one synchronisation however many tensors are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spmoe.state.events import Forecast
from spmoe.trace.schema import ONE

_NARROW = (torch.bfloat16, torch.float16)
"""Types that numpy does not have, or in which 65536 is infinite."""


def read(tensors: Sequence[torch.Tensor]) -> list[NDArray[Any]]:
    """The values of tensors of integers below 2^24 or of probabilities; on a GPU they travel as float32, together."""
    if tensors[0].device.type == "cpu":
        return [(each.float() if each.dtype in _NARROW else each).numpy() for each in tensors]
    packed = torch.cat([each.reshape(-1).to(torch.float32) for each in tensors]).cpu().numpy()
    parts = np.split(packed, np.cumsum([each.numel() for each in tensors])[:-1])
    return [
        (part if each.is_floating_point() else part.astype(np.int64)).reshape(tuple(each.shape))
        for part, each in zip(parts, tensors, strict=True)
    ]


def fixed_point(probability: float) -> int:
    """A probability as a whole number over 65536, rounded."""
    return min(ONE, int(probability * ONE + 0.5))


def fractions(probabilities: NDArray[Any]) -> list[Any]:
    """Probabilities as whole numbers over 65536, rounded, in lists nested as the array is."""
    numbers: list[Any] = np.minimum(probabilities * ONE + 0.5, ONE).astype(np.int64).tolist()
    return numbers


def forecasts(experts: NDArray[Any], probabilities: NDArray[Any]) -> list[tuple[Forecast, ...]]:
    """For each of n rows a forecast per layer, from experts and probabilities [n, layers, k] by rank."""
    rows = zip(experts.tolist(), fractions(probabilities), strict=True)
    return [tuple(tuple(zip(*pair, strict=True)) for pair in zip(*row, strict=True)) for row in rows]
