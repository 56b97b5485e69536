"""Batched I/O (SP-MoE, arXiv 2510.10302, its pipelined runtime): which loads travel together, and in which order.

A submission costs a fixed latency, so small loads should share one.  But what is submitted cannot be stopped, so a
large batch makes a demand load wait behind it and delays its own first expert.  Two budgets hold the balance.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice, pairwise
from sys import maxsize
from typing import NamedTuple

from spmoe.state.commands import Load, Purpose
from spmoe.state.transfers import TransferQueue

DEPTH = 2
"""Batches submitted at a time: one on the link, one behind it so that the link never idles between two."""


class Pace(NamedTuple):
    """How long things take when nothing stalls: what the policy may reckon with.  Bytes, and integer nanoseconds."""

    load_bytes: int
    latency_ns: int
    """Fixed cost of a submission."""
    transfer_ns: int
    """One expert over the link, without latency."""
    draft_ns: int
    """One drafted token."""
    layer_ns: int
    """One MoE layer of the verifier with a full window, all experts resident."""
    host_tokens: int = 0
    """For so many tokens or fewer the CPU computes an expert in less time than a load takes; 0 where it never does."""
    host_ns: int = 0
    """One expert on the CPU for one token; 0 where it computes none."""
    host_token_ns: int = 0
    """Each token of an expert takes the CPU at least as long."""
    handover_ns: int = 0
    """What handing experts to the CPU takes, before the first."""
    expert_ns: int = 0
    """One expert on the GPU, less what a result of the CPU costs there; 0 where the CPU computes none."""
    least_layer_ns: int = 0
    """As `layer_ns`, with a single token: the least time between two layers' demands."""

    @property
    def load_ns(self) -> int:
        """One expert alone in a submission."""
        return self.latency_ns + self.transfer_ns

    def host_expert_ns(self, tokens: int) -> int:
        """One expert on the CPU for so many tokens."""
        return max(self.host_ns, tokens * self.host_token_ns)


@dataclass(frozen=True, slots=True)
class OneByOne:
    """Every load is a submission of its own; at most `depth` are submitted at a time."""

    depth: int = DEPTH

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

    def loads_per_batch(self, pace: Pace) -> int:
        """No limit that matters."""
        return maxsize


IOPlan = OneByOne | Batched | AllAtOnce


class Planner:
    """Forms the next batch from what is queued.

    Demand first and never mixed with prefetches, for a passenger would delay it.  Within a purpose the loads with the
    earliest deadlines go first: should slots run out, the last ones stay behind.  A batch then travels in the order of
    host memory, so that neighbours merge.
    """

    def __init__(self, io: IOPlan, pace: Pace) -> None:
        self.loads_per_batch = io.loads_per_batch(pace)

    def next_batch(self, queue: TransferQueue) -> tuple[Purpose, list[int]] | None:
        """Purpose and keys of the next batch, most urgent first; None where nothing is queued.  Takes nothing out."""
        count = self.loads_per_batch
        if queue.demands:
            return Purpose.DEMAND, [next(iter(queue.demands))] if count == 1 else list(islice(queue.demands, count))
        head = queue.first_prefetch()
        if head is None:
            return None
        if count == 1:
            return head.purpose, [head.key]
        alike = (prefetch for prefetch in queue.prefetches.values() if prefetch.purpose is head.purpose)
        return head.purpose, [prefetch.key for prefetch in nsmallest(count, alike)]


def copies(loads: tuple[Load, ...]) -> int:
    """How many copies a batch takes: a run that is contiguous on the host and on the GPU is one."""
    if len(loads) == 1:
        return 1
    return 1 + sum(after.key != before.key + 1 or after.slot != before.slot + 1 for before, after in pairwise(loads))
