"""Probabilities as integers, moved by shifts and whole divisions, so that every machine gets the same."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

SHIFT_BITS: Final = 16
ONE: Final = 1 << SHIFT_BITS
"""A probability of 1, as in traces."""

WHOLE, SHIFT = np.array(ONE), np.array(SHIFT_BITS)
"""`ONE` and its logarithm as arrays: numpy computes with them in half the time that a plain integer takes it."""
