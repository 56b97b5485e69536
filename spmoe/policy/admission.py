"""Does a load stay once its experts have computed?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Always:
    """Every load joins the cache and stays until the eviction rule picks it."""


@dataclass(frozen=True, slots=True)
class InitialOnly:
    """The initial contents are fixed; every other load streams through the slots that are left."""


Admission = Always | InitialOnly
