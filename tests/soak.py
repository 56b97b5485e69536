"""How much a test tries: few cases in every run of the suite, many in `make soak`."""

from __future__ import annotations

import os
from typing import Final

SOAK: Final = int(os.environ.get("SPMOE_SOAK", "1"))
"""The factor; 1 in `make test`."""


def times(cases: int, soaked: int | None = None) -> int:
    """`cases`; in a soak `SOAK` times as many, or `SOAK` times `soaked`."""
    return cases if SOAK == 1 else SOAK * (soaked or cases)
