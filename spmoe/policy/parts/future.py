"""The needs of a whole run, for policies that know them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Final

from spmoe.trace.windows import Request, fixed_windows

Requests = Callable[[], Iterator[Request]]
"""Starts a new pass over the requests of a trace."""

EXPERT: Final = 0x7FFF
"""The bits of a word that hold an expert's id."""
LAST: Final = 0x8000
"""The bit that marks the last word of a visit."""
NO_NEED: Final = EXPERT
"""In place of an id, for a visit that needs nothing."""


class Future:
    """The needs of all windows of a trace, in two bytes each: expert ids, visit by visit."""

    def __init__(self, requests: Requests, gamma: int) -> None:
        """Reads the windows of `gamma` drafted tokens in one pass."""
        self.words = array("H")
        for request in requests():
            for window in fixed_windows(request, gamma):
                for routing in window.routing():
                    # A visit that needs nothing (a missing cell) still takes a word.
                    self.words.extend(routing.experts or (NO_NEED,))
                    self.words[-1] |= LAST
