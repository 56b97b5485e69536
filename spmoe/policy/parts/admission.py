"""Does a load stay once its experts have computed?"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import ClassVar, Protocol

from spmoe.state.residency import Residency


class Admission(Protocol):
    """The part of a recipe that says which loads join the cache."""

    releases_early: ClassVar[bool]
    """Whether an expert may leave as soon as it has computed, while its layer still loads others."""

    def fixed(self, initial: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the initial contents that never leave."""

    def cached(self, residency: Residency) -> Container[int]:
        """The keys that count as cached: not what only passes through, even while it is resident."""


@dataclass(frozen=True, slots=True)
class Always:
    """Every load joins the cache and stays until the eviction rule picks it."""

    releases_early: ClassVar[bool] = False

    def fixed(self, initial: tuple[int, ...]) -> tuple[int, ...]:
        """None of them."""
        return ()

    def cached(self, residency: Residency) -> Container[int]:
        """All residents."""
        return residency.resident


@dataclass(frozen=True, slots=True)
class InitialOnly:
    """The initial contents are fixed; every other load streams through the slots that are left."""

    releases_early: ClassVar[bool] = False

    def fixed(self, initial: tuple[int, ...]) -> tuple[int, ...]:
        """All of them."""
        return initial

    def cached(self, residency: Residency) -> Container[int]:
        """The fixed ones."""
        return residency.fixed


@dataclass(frozen=True, slots=True)
class ByValue(Always):
    """A load stays only where the eviction rule finds others that are worth less: it may stream through.

    So a layer of many misses takes no more slots than it has experts worth keeping.
    """

    releases_early: ClassVar[bool] = True
