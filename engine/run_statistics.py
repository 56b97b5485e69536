"""What the requests of an engine come to, folded from what observers see."""

from __future__ import annotations

from spmoe.drive.dispatcher import Observer
from spmoe.results.lengths import LengthFold
from spmoe.results.metrics import Metrics
from spmoe.results.metrics_fold import MetricsFold
from spmoe.results.transfers import TransferFold, Transfers


class RunStatistics:
    """The statistics of a run so far; base of `Engine`."""

    _metrics: MetricsFold
    _transfers: TransferFold
    _lengths: LengthFold

    def _watch(self, experts: int, expert_bytes: int) -> tuple[Observer, ...]:
        """Begins to fold; returns the observers that do.  `experts` per layer, `expert_bytes` each."""
        self._metrics = MetricsFold(experts)
        self._transfers = TransferFold(expert_bytes)
        self._lengths = LengthFold()
        return self._metrics.observe, self._transfers.observe, self._lengths.observe

    def metrics(self) -> Metrics:
        """What all requests so far came to."""
        return self._metrics.result()

    def transfers(self) -> Transfers:
        """What the link has moved so far, and what became of drafted tokens."""
        return self._transfers.result()

    def lengths(self) -> tuple[int, ...]:
        """How many tokens each round so far has drafted to be verified."""
        return self._lengths.result()
