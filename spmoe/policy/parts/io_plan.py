"""Batched I/O (SP-MoE, arXiv 2510.10302, its pipelined runtime): which loads travel together, and in which order.

A submission costs a fixed latency, so small loads should share one.  But what is submitted cannot be stopped, so a
large batch makes a demand load wait behind it and delays its own first expert.  Two budgets hold the balance.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from sys import maxsize
from typing import ClassVar, Protocol

from spmoe.policy.parts.pace import Pace
from spmoe.state.commands import Load

DEPTH = 2
"""Batches submitted at a time: one on the link, one behind it so that the link never idles between two."""


class IOPlan(Protocol):
    """The part of a recipe that says how many loads make a submission."""

    batches: ClassVar[bool]
    """Whether a submission may carry several loads."""

    @property
    def depth(self) -> int:
        """The most submissions at a time."""

    def loads_per_batch(self, pace: Pace) -> int:
        """The most loads of one submission.

        Demand loads go first and never share one with prefetches, which would delay them.  The most urgent loads go
        first: should slots run out, the last ones stay behind.  A batch then travels in the order of host memory, so
        that neighbours merge.
        """


@dataclass(frozen=True, slots=True)
class OneByOne:
    """Every load is a submission of its own; at most `depth` are submitted at a time."""

    depth: int = DEPTH
    batches: ClassVar[bool] = False

    def loads_per_batch(self, pace: Pace) -> int:
        """Always one."""
        return 1


@dataclass(frozen=True, slots=True)
class Batched:
    """As many loads as fit both budgets, and at least one.

    `max_ns` also bounds how long a demand load waits behind a prefetch that is already on the link.  At most `depth`
    batches are submitted at a time.
    """

    max_bytes: int = 256 * 2**20
    max_ns: int = 4_000_000
    depth: int = DEPTH
    batches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.max_bytes <= 0 or self.max_ns <= 0:
            raise ValueError("both budgets of a batch must be positive")

    def loads_per_batch(self, pace: Pace) -> int:
        """The number of experts that one submission may carry."""
        by_bytes = self.max_bytes // pace.load_bytes
        by_time = (self.max_ns - pace.latency_ns) // pace.transfer_ns
        return max(1, min(by_bytes, by_time))


@dataclass(frozen=True, slots=True)
class AllAtOnce:
    """All loads that wait, of one purpose, are one submission."""

    depth: int = DEPTH
    batches: ClassVar[bool] = True

    def loads_per_batch(self, pace: Pace) -> int:
        """No limit that matters."""
        return maxsize


def copies(loads: tuple[Load, ...]) -> int:
    """How many copies a batch takes: a run that is contiguous on the host and on the GPU is one."""
    if len(loads) == 1:
        return 1
    return 1 + sum(after.key != before.key + 1 or after.slot != before.slot + 1 for before, after in pairwise(loads))
