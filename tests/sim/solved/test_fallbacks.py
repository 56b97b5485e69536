"""SP-MoE's rows for drafts that forecast nothing, each on a run that can be followed on paper.

As in `tests.sim.solved.test_basics`: attention and router of a layer take 100 ns, an expert 50, a load 200 on the link
with no latency.
"""

from __future__ import annotations

from spmoe.trace.schema import TokenLine
from tests.sim.paper import solve, token, trace, waits


def told(position: int, first: int, second: int) -> TokenLine:
    """A token in two layers whose second expert the gate of the first layer knows."""
    return token(position, (first,), (second,), next_gate=((), (second,)))


def test_next_gate_travels_in_batches() -> None:
    lines = trace([token(0, (0, 1), (2, 3), next_gate=((), (2, 3)))], 2, 4, top_k=2)
    run = solve(lines, "spmoe.next-gate", slots=8)
    # Reached at 100: one batch for layer 0, 100 - 500, and behind it one for layer 1, 500 - 900.  Computed at 600.
    # Layer 1 at 700: both late, there at 900, computed at 1000.
    assert run.transfers == [([(0, 0), (0, 1)], 100, 500), ([(1, 2), (1, 3)], 500, 900)]
    assert run.counts == (0, 2, 2, 4)
    assert (run.metrics.prefetched, run.metrics.prefetched_used) == (2, 2)
    assert run.metrics.decode_ns == 1000
    # One by one the first of each pair computes while the second travels.
    assert solve(lines, "next-gate", slots=8).metrics.decode_ns == 950


def test_next_gate_evicts_the_least_recently_used_of_the_layer_or_of_all() -> None:
    lines = trace([told(0, 0, 0), told(1, 1, 1), told(2, 0, 1)], 2, 2)
    # Token 0: loads 100 - 300 and, ahead of its layer, 300 - 500; computed at 350 and 550.
    # Token 1: reached at 650, loads 650 - 850 and 850 - 1050; computed at 900 and 1100.
    shared = solve(lines, "spmoe.next-gate", slots=3)
    # (1, 1) displaces (0, 0), which token 2 needs: reached at 1200, 1200 - 1400, 1450.  Layer 1 at 1550 hits: 1600.
    assert shared.evicted == [(0, 0), (1, 0)]
    assert shared.counts == (1, 2, 3, 5)
    assert shared.metrics.decode_ns == 1600
    split = solve(lines, "spmoe.per-layer.next-gate", slots=3)
    # Layer 0 has two slots and keeps both experts, layer 1 has one.  Token 2 hits: 1200, 1250, 1350, 1400.
    assert split.evicted == [(1, 0)]
    assert split.counts == (2, 2, 2, 4)
    assert (split.metrics.prefetched, split.metrics.prefetched_used) == (2, 2)
    assert split.metrics.decode_ns == 1400


def test_popular_fetches_ahead_what_was_used_most() -> None:
    lines = trace([token(0, (0,), (1,)), token(1, (2,), (1,)), token(2, (0,), (2,)), token(3, (0,), (1,))], 2, 3)
    run = solve(lines, "spmoe.popular", slots=2)
    # Token 0: two misses, 350 each: 700.  Token 1: a miss, and (1, 1) is still there: 1050, 1200.
    # Token 2: (0, 0) displaces (0, 2), (1, 2) displaces (1, 1): 1900.  In layer 1 expert 1 has two tokens, 2 has one.
    # Token 3: layer 0 at 2000 hits; (1, 1) displaces (1, 2), 2000 - 2200.  Layer 1 at 2150 waits for it: 2250.
    assert run.evicted == [(0, 0), (0, 2), (1, 1), (1, 2)]
    assert run.counts == (2, 1, 5, 6)
    assert (run.metrics.prefetched, run.metrics.prefetched_used) == (1, 1)
    assert waits(run)[-1] == (2150, 2200)
    assert run.metrics.decode_ns == 2250
    assert solve(lines, "on-demand.lru", slots=2).metrics.decode_ns == 2400


def test_popular_may_displace_what_its_layer_needs() -> None:
    lines = trace([token(0, (0,), (0,)), token(1, (1,), (1,)), token(2, (0,), (1,))], 2, 2)
    # Two tokens with two misses each: 1400.
    split = solve(lines, "spmoe.per-layer.popular", slots=3)
    # Token 2: layer 0 at 1500 hits, in one of its two slots.  In layer 1 both experts had a token: (1, 0), the lower
    # id, displaces (1, 1), 1500 - 1700.  Layer 1 at 1650 needs (1, 1), which gets the slot then: 1700 - 1900, 1950.
    assert split.evicted == [(1, 0), (1, 1), (1, 0)]
    assert split.counts == (1, 0, 5, 6)
    assert (split.metrics.prefetched, split.metrics.prefetched_used) == (1, 0)
    assert split.metrics.decode_ns == 1950
    shared = solve(lines, "spmoe.popular", slots=3)
    # (1, 1) displaced (0, 0): token 2 loads it again, 1500 - 1700, 1750.  (1, 0) is still there as layer 0 is reached,
    # so it is not wished for; it leaves for (0, 0).  Layer 1 at 1850 hits: 1900.
    assert shared.evicted == [(0, 0), (1, 0)]
    assert shared.counts == (1, 0, 5, 5)
    assert shared.metrics.decode_ns == 1900
