"""How far ahead a forecast may be acted on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NextLayer:
    """Only the layer after the one that is reached."""

    def end(self, at: int, layers: int, cutoff: int) -> int:
        """The first layer not to prefetch for, standing at layer `at` (-1 while drafting)."""
        return min(at + 2, layers)


@dataclass(frozen=True, slots=True)
class CutoffLayer:
    """The leading layers, up to SP-MoE's cutoff layer (arXiv 2510.10302); the rest is left to demand loads."""

    def end(self, at: int, layers: int, cutoff: int) -> int:
        """The cutoff, wherever the step stands."""
        return min(cutoff, layers)


@dataclass(frozen=True, slots=True)
class Unlimited:
    """As far as the forecast reaches."""

    def end(self, at: int, layers: int, cutoff: int) -> int:
        """All layers."""
        return layers


Horizon = NextLayer | CutoffLayer | Unlimited
