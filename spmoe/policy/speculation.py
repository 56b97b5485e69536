"""How many tokens to draft."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NoSpeculation:
    """Plain decoding, one token at a time, whatever the configured gamma: for systems that know no speculation."""

    def gamma(self, configured: int) -> int:
        """Never drafts."""
        return 0


@dataclass(frozen=True, slots=True)
class FixedGamma:
    """Always as many tokens as configured (fewer at the end of a request)."""

    def gamma(self, configured: int) -> int:
        """The configured length."""
        return configured


Speculation = NoSpeculation | FixedGamma
