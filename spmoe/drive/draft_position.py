"""How many tokens a draft has to read before it can propose one: those of the request that it has not seen yet."""

from __future__ import annotations


class Unread:
    """Follows one draft through the rounds of a request.

    It reads the prompt with its first token, one token with each further one, and two after a round whose drafted
    tokens all stood: the last of them it has only proposed.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._known = 0

    def request_begun(self) -> None:
        """Nothing of the request is seen."""
        self._seen = 0

    def round_begun(self, position: int, read: int = 0) -> None:
        """The first input of the round, at `position`, is known; what is drafted stands behind it, as does what the
        draft proposed when it read the first `read` inputs in the round before."""
        self._known = position + 1 + read

    def draft(self) -> int:
        """The draft proposes its next token; returns how many tokens it reads for it."""
        read = self._known - self._seen
        self._seen = self._known
        self._known += 1
        return read

    def round_ended(self, length: int) -> None:
        """Of the request `length` tokens stand, those that were drafted and not accepted do not."""
        self._seen = min(self._seen, length)
