"""How often a trace uses each expert, for policies that learn from other requests, or know all in hindsight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spmoe.trace.schema import TokenLine, Trace
from spmoe.trace.windows import Request, fixed_windows


@dataclass(frozen=True, slots=True)
class Uses:
    """Uses per request and expert key: an array [requests, layers * experts], its sum, and each request's row."""

    counts: NDArray[np.int64]
    total: NDArray[np.int64]
    row: dict[int, int]

    def popular(self, request: int) -> tuple[int, ...]:
        """All keys, those that *other* requests use most first, ties by key; the request need not be in the trace."""
        others = self.total - self.counts[self.row[request]] if request in self.row else self.total
        return tuple(np.argsort(-others, kind="stable").tolist())


def count_uses(trace: Trace) -> Uses:
    """Count in one pass; memory grows with the number of requests, not of tokens."""
    experts = trace.header.model.experts
    keys = trace.header.model.layers * experts
    row: dict[int, int] = {}
    counts: list[list[int]] = []
    for line in trace:
        if not isinstance(line, TokenLine):
            continue
        if line.request not in row:
            row[line.request] = len(counts)
            counts.append([0] * keys)
        used = counts[row[line.request]]
        for layer, cell in enumerate(line.routed):
            for expert in cell:
                used[layer * experts + expert] += 1
    table = np.array(counts, dtype=np.int64).reshape(len(counts), keys)
    return Uses(table, table.sum(axis=0), row)


def most_needed(requests: Iterable[Request], gamma: int, layers: int, experts: int) -> tuple[int, ...]:
    """All keys, those that most windows of `gamma` drafted tokens need first, ties by key."""
    needs = [0] * (layers * experts)
    for request in requests:
        for window in fixed_windows(request, gamma):
            for layer, routing in enumerate(window.routing()):
                for expert in routing.experts:
                    needs[layer * experts + expert] += 1
    return tuple(sorted(range(len(needs)), key=lambda key: (-needs[key], key)))
