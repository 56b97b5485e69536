"""How many tokens to draft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol


class Speculation(Protocol):
    """The part of a recipe that says how many tokens to draft."""

    chooses: ClassVar[bool]
    """Whether it may decide, round by round, to draft fewer tokens than are configured."""
    piece: ClassVar[int]
    """Layers that the draft goes through at a time, past the window."""

    def gamma(self, configured: int) -> int:
        """The most tokens that are drafted for a window."""

    def lead(self, configured: int) -> int:
        """The most tokens that the draft reads from the window's last one on; 0 where it never goes past the window."""


@dataclass(frozen=True, slots=True)
class NoSpeculation:
    """Plain decoding, one token at a time, whatever the configured gamma: for systems that know no speculation."""

    chooses: ClassVar[bool] = False
    piece: ClassVar[int] = 1

    def gamma(self, configured: int) -> int:
        """Never drafts."""
        return 0

    def lead(self, configured: int) -> int:
        """Never drafts."""
        return 0


@dataclass(frozen=True, slots=True)
class FixedGamma:
    """Always as many tokens as configured (fewer at the end of a request)."""

    chooses: ClassVar[bool] = False
    piece: ClassVar[int] = 1

    def gamma(self, configured: int) -> int:
        """The configured length."""
        return configured

    def lead(self, configured: int) -> int:
        """Past the window nothing is drafted."""
        return 0


@dataclass(frozen=True, slots=True)
class RunAhead(FixedGamma):
    """As `FixedGamma`; and while the verifier waits for the link, the draft goes on past the window.

    It reads the window's last token, and then those of the next window, the last included.  Its forecasts for them
    guide eviction; when the window stands, and the target's token is the one that the draft went on with, they are
    the next window's.  Otherwise they are dropped.  The draft goes on by `piece` layers at a time, which are over
    before anything arrives.
    """

    piece: ClassVar[int] = 2

    def lead(self, configured: int) -> int:
        """The window's last token, and those of the next."""
        return configured + 2 if configured else 0


@dataclass(frozen=True, slots=True)
class WorthDrafting(RunAhead):
    """As `RunAhead`; where no length is given, as many tokens as are worth it (`policy.foresight.draft_length`)."""

    chooses: ClassVar[bool] = True
