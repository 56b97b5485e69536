"""Whether the draft is as fast as the scheduler expects."""

from __future__ import annotations

from typing import Final

MAX_DRAFT_SLOWDOWN: Final = 1.25
"""A draft whose tokens take that many times as long as the scheduler expects does not go on past the window: the
verifier would wait for it."""
_TOKENS: Final = 8
"""The time per token is averaged over about so many."""


class DraftSpeed:
    """Averages how long the draft takes for a token of the window."""

    def __init__(self, expected_ns: int) -> None:
        """`expected_ns` is what the scheduler expects of a token."""
        self._expected_ns = self._average_ns = expected_ns
        self._since: int | None = None
        """When the token under way was begun, where it is one of the window's."""
        self._reads_prompt = False
        """Whether the next token is a request's first, for which the draft reads the prompt: that does not count."""

    @property
    def slow(self) -> bool:
        """Whether tokens take too long for the draft to go on past the window."""
        return self._average_ns > MAX_DRAFT_SLOWDOWN * self._expected_ns

    def request_begun(self) -> None:
        """The draft has read nothing yet."""
        self._reads_prompt = True

    def round_begun(self, now: int) -> None:
        """Drafting begins at `now` (ns)."""
        self._since = now

    def token_drafted(self, now: int) -> None:
        """A token is proposed, of the window or past it."""
        if self._since is None:
            return
        if not self._reads_prompt:
            self._average_ns += (now - self._since - self._average_ns) // _TOKENS
        self._reads_prompt = False
        self._since = now

    def verification_begun(self) -> None:
        """What is drafted from here on lies past the window: it is not measured."""
        self._since = None
