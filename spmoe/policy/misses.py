"""What happens when an expert is not there as its layer is reached."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fetch:
    """Residents compute first while the missing ones are fetched, then each as it arrives."""

    fetch_only: bool = True
    """Nothing but copies over the link answers a miss."""
