"""How far ahead a forecast may be acted on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol


class Horizon(Protocol):
    """The part of a recipe that says for which layers to prefetch."""

    has_cutoff: ClassVar[bool]
    """Whether it goes by SP-MoE's cutoff layer."""

    def end(self, at: int, layers: int, cutoff: int) -> int:
        """The first layer not to prefetch for, standing at layer `at` (-1 while drafting)."""


@dataclass(frozen=True, slots=True)
class NextLayer:
    """Only the layer after the one that is reached."""

    has_cutoff: ClassVar[bool] = False

    def end(self, at: int, layers: int, cutoff: int) -> int:
        """The first layer not to prefetch for, standing at layer `at` (-1 while drafting)."""
        return min(at + 2, layers)


@dataclass(frozen=True, slots=True)
class CutoffLayer:
    """The leading layers, up to SP-MoE's cutoff layer (arXiv 2510.10302); the rest is left to demand loads."""

    has_cutoff: ClassVar[bool] = True

    def end(self, at: int, layers: int, cutoff: int) -> int:
        """The cutoff, wherever the step stands."""
        return min(cutoff, layers)


@dataclass(frozen=True, slots=True)
class Unlimited:
    """As far as the forecast reaches."""

    has_cutoff: ClassVar[bool] = False

    def end(self, at: int, layers: int, cutoff: int) -> int:
        """All layers."""
        return layers
