"""Commands: what the scheduler has a driver do.  Immutable; the driver carries them out in the order given."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Purpose(StrEnum):
    """Why a batch moves: something waits for it, it was forecast, or it belongs to the first contents of the cache."""

    DEMAND = "demand"
    PREFETCH = "prefetch"
    PRELOAD = "preload"


class Load(NamedTuple):
    """One expert to copy from host memory into `slot`; `evicted` is the key whose weights it overwrites, or None."""

    key: int
    slot: int
    evicted: int | None


class Submit(NamedTuple):
    """Copy these loads, in this order, as one submission to the link.

    `attempt` is 2 when a failed batch is retried.
    """

    batch: int
    purpose: Purpose
    loads: tuple[Load, ...]
    attempt: int = 1


class Speculate(NamedTuple):
    """Draft `gamma` tokens, or fewer where `Verify` says so; on each, report forecasts for the first `layers` MoE
    layers, `group` layers at a time.

    Tokens that the draft has drafted already, past the window before, count: there may be more of them than `gamma`.
    """

    gamma: int
    layers: int
    group: int


class Verify(NamedTuple):
    """Draft no more; the window holds the first `drafted` tokens.

    Those are all that were drafted, or all but the last.  What the draft has read from the window's last token on
    counts as past the window.
    """

    drafted: int


class LayerPlan(NamedTuple):
    """How a layer is served: compute `hits` now, `late` (queued or in flight) and `misses` as they arrive.

    Experts are in routing order.  `host` are those of all three that the CPU computes instead; no load comes for
    them.  With `in_order` experts compute by ascending id, and a hit waits for those before it.  With `waves` the
    slots do not suffice for all of them at once: what has computed has to be reported (`Computed`), so that it can
    make room.
    """

    layer: int
    hits: tuple[int, ...]
    late: tuple[int, ...]
    misses: tuple[int, ...]
    host: tuple[int, ...]
    in_order: bool
    waves: bool


class DraftAhead(NamedTuple):
    """Have the draft go on past the window: through layers `first` to `until` (exclusive) on its token `token`."""

    token: int
    first: int
    until: int


Reply = Speculate | Verify | LayerPlan | DraftAhead
"""Commands to the step program; an event is answered by at most one of them."""

Command = Submit | Reply
