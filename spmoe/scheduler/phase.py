"""Where a driver stands between two events, and how one is refused."""

from __future__ import annotations

from enum import Enum


class IllegalEvent(RuntimeError):
    """An event came in an order that ``docs/contract.md`` does not allow: the driver is wrong."""


class Phase(Enum):
    """Where a driver stands between two events."""

    IDLE = "before the first request"
    READY = "between steps"
    DRAFTING = "drafting"
    PREFILL = "reading the prompt, between layers"
    VERIFY = "verifying, between layers"
    LAYER = "inside a layer"
