"""Metrics of a run.

*Hit*, *late* and *miss* are counted per step, layer and distinct expert when its layer is reached; *loads* are those
begun in decode, preloads included; *TPOT* is decode time, drafting included, per output token; *stall* is time in which
the verifier only waits: neither GPU nor CPU computes for it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metrics:
    """Totals of a run.  Times in ns.  Counts are over decode, except where a name says otherwise."""

    events: int
    requests: int
    steps: int
    tokens: int
    decode_ns: int
    compute_ns: int
    """Verifier time without stalls: experts on the CPU count as compute."""
    stall_ns: int
    link_busy_ns: int
    prefill_ns: int
    """Request start to first token, summed over the requests with a prefill."""
    prefills: int
    hits: int
    late: int
    misses: int
    loads: int
    host_computed: int
    """Experts that the CPU computed: misses, or late."""
    host_busy_ns: int
    prefetched: int
    prefetched_used: int
    cold_needs: int
    """Needs that were not resident at their step's start."""
    cold_needs_prefetched: int
    """Those of them whose prefetch had begun when their layer was reached."""

    @property
    def needs(self) -> int:
        """Distinct experts, summed over steps and layers."""
        return self.hits + self.late + self.misses

    @property
    def tpot_ms(self) -> float | None:
        """Decode time per output token; None where no token came out."""
        return self.decode_ns / self.tokens / 1e6 if self.tokens else None

    @property
    def ttft_ms(self) -> float | None:
        """Mean time to the first token; None where no request has a prefill."""
        return self.prefill_ns / self.prefills / 1e6 if self.prefills else None

    @property
    def loads_per_token(self) -> float | None:
        """Loads begun in decode per output token."""
        return self.loads / self.tokens if self.tokens else None

    @property
    def host_per_token(self) -> float | None:
        """Experts computed by the CPU per output token."""
        return self.host_computed / self.tokens if self.tokens else None

    @property
    def host_utilisation(self) -> float | None:
        """Share of decode time in which the CPU computes."""
        return self.host_busy_ns / self.decode_ns if self.decode_ns else None

    @property
    def hit_rate(self) -> float | None:
        """Share of needs that were resident."""
        return self.hits / self.needs if self.needs else None

    @property
    def late_rate(self) -> float | None:
        """Share of needs that were queued or in flight."""
        return self.late / self.needs if self.needs else None

    @property
    def prefetch_precision(self) -> float | None:
        """Prefetched loads used before eviction / prefetched loads; None where nothing was prefetched."""
        return self.prefetched_used / self.prefetched if self.prefetched else None

    @property
    def prefetch_recall(self) -> float | None:
        """Share of the needs cold at their step's start whose prefetch had begun in time; None where none was cold."""
        return self.cold_needs_prefetched / self.cold_needs if self.cold_needs else None

    @property
    def stall_fraction(self) -> float | None:
        """Share of decode time in which the verifier only waits."""
        return self.stall_ns / self.decode_ns if self.decode_ns else None

    @property
    def link_utilisation(self) -> float | None:
        """Share of decode time in which the link transfers."""
        return self.link_busy_ns / self.decode_ns if self.decode_ns else None
