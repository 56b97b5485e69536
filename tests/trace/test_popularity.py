"""Which experts other requests use most, and which ones most windows of a trace need."""

from __future__ import annotations

from spmoe.trace.popularity import count_uses, most_needed
from spmoe.trace.schema import PrefillLine
from spmoe.trace.windows import requests
from tests.sim.paper import token, trace

LINES = trace(
    [
        PrefillLine(5, 3, ((0, 1, 2), (0,))),  # Prompts do not count.
        token(0, (2,), (0,), request=5),
        token(1, (2,), (0,), request=5),
        token(2, (2,), (1,), request=5),
        token(0, (1,), (1,), request=6),
    ],
    layers=2,
    experts=3,
)


def test_popular_are_those_that_other_requests_use() -> None:
    uses = count_uses(LINES)
    assert uses.counts.tolist() == [[0, 0, 3, 2, 1, 0], [0, 1, 0, 0, 1, 0]]
    assert uses.popular(5) == (1, 4, 0, 2, 3, 5)
    assert uses.popular(6) == (2, 3, 4, 0, 1, 5)
    assert uses.popular(7) == (2, 3, 4, 1, 0, 5)  # not of this trace: all count


def test_needs_count_once_a_window() -> None:
    # Windows of two: (2, 2), (2), (1); in layer 1 (0, 0), (1), (1).
    assert most_needed(requests(LINES), 1, 2, 3) == (2, 4, 1, 3, 0, 5)
    assert most_needed(requests(LINES), 0, 2, 3) == (2, 3, 4, 1, 0, 5)
