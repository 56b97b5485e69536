"""Strings at which a text ends, found in pieces of it as they come."""

from __future__ import annotations

from collections.abc import Sequence

from spmoe.errors import InputError


class StopStrings:
    """Holds back what may be the beginning of a stop string until it is one, or turns out not to be."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises InputError for one that is empty or no text."""
        for stop in [stops] if isinstance(stops, str) else stops:
            if not isinstance(stop, str) or not stop:
                raise InputError(f"stop: expected texts that are not empty, got {stop!r}")
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        self._held = ""
        self.found = False
        """Whether one was complete: nothing comes any more."""

    def feed(self, text: str) -> str:
        """What can be shown with `text` behind all before; up to the stop string that is complete first."""
        if self.found:
            return ""
        text = self._held + text
        complete = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if complete:
            self.found, self._held = True, ""
            # Of those complete at the same place the longest takes the most away.
            return text[: min(complete)[1]]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back: the text is over."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if stop.startswith(text[-length:])), 0)
