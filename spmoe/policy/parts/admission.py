"""Does a load stay once its experts have computed?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Always:
    """Every load joins the cache and stays until the eviction rule picks it."""


@dataclass(frozen=True, slots=True)
class InitialOnly:
    """The initial contents are fixed; every other load streams through the slots that are left."""


@dataclass(frozen=True, slots=True)
class ByValue:
    """A load stays only where the eviction rule finds others that are worth less: it may stream through.

    An expert may leave as soon as it has computed, while its layer still loads others: so a layer of many misses takes
    no more slots than it has experts worth keeping.
    """


Admission = Always | InitialOnly | ByValue
