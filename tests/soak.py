"""How much a test tries: few cases in every run of the suite, ten times as many in `make soak`."""

from __future__ import annotations

import os
from typing import Final

SOAK: Final = int(os.environ.get("SPMOE_SOAK", "1"))
"""The factor; 1 in `make test`."""


def times(cases: int) -> int:
    """So many cases, or the multiple of them that a soak asks for."""
    return cases * SOAK
