"""Policies that learn from what was routed, each on a run that can be followed on paper.

As in `tests.sim.solved.test_basics`: attention and router of a layer take 100 ns, an expert 50, a load 200 on the link
with no latency, a drafted token 40.  Every run is one that LRU without prefetch does otherwise.
"""

from __future__ import annotations

import pytest

from spmoe.state.commands import Purpose
from spmoe.state.events import LayerDone
from spmoe.trace.schema import PrefillLine, TokenLine, TraceInMemory, TraceLine
from tests.sim.paper import Key, Solved, machine, solve, token, tokens, trace

LRU = "on-demand.lru"


def waits(run: Solved) -> list[tuple[int, int]]:
    return [wait for event, _ in run.entries if isinstance(event, LayerDone) for wait in event.waits]


def prefetches(run: Solved) -> list[tuple[Key, int, int]]:
    """What crossed the link before anything waited for it, from when to when."""
    ahead = [submit.purpose is Purpose.PREFETCH for submit in run.submits]
    return [(keys[0], start, end) for (keys, start, end), early in zip(run.transfers, ahead, strict=True) if early]


def walk(*experts: int, request: int = 0) -> list[TokenLine]:
    """Tokens that are routed to the same expert in both layers of a model."""
    return [token(at, (expert,), (expert,), request=request) for at, expert in enumerate(experts)]


# MoE-Infinity


def test_moe_infinity_released_evicts_the_least_frequently_used() -> None:
    lines = trace(tokens(0, 0, 0, 1, 1, 2, 3, 2, 3, 2), 1, 4)
    run = solve(lines, "moe-infinity.released", slots=3)
    # Uses so far, with the token's own: 0 has 3 and 1 has 2 when 2 takes the last free slot.
    # 3 miss   2 has 1: it leaves        2 miss   its second use; 3 has 1: it leaves
    # 3 miss   its second use; 1 and 2 have 2 each, and 1 is the lower id: it leaves
    # 2 hit    Six misses at 350 ns, four hits at 150.
    assert run.evicted == [(0, 2), (0, 3), (0, 1)]
    assert run.counts == (4, 0, 6, 6)
    assert run.metrics.decode_ns == 6 * 350 + 4 * 150
    # LRU throws out 0 for 3 and keeps 2 and 3.
    lru = solve(lines, LRU, slots=3)
    assert lru.evicted == [(0, 0)]
    assert lru.metrics.decode_ns == 4 * 350 + 6 * 150


def test_moe_infinity_released_breaks_ties_by_expert_id_before_layer() -> None:
    lines = trace([token(0, (1,), (0,)), token(1, (0,), (0,))], 2, 2)
    run = solve(lines, "moe-infinity.released", slots=2)
    # (0, 1) and (1, 0) have one use each when (0, 0) comes: expert 0 leaves, though its layer is the later one.  Then
    # (1, 0), now with its second use, takes the place of (0, 0).
    assert run.evicted == [(1, 0), (0, 0)]
    assert run.metrics.decode_ns == 4 * 350
    lru = solve(lines, LRU, slots=2)
    assert lru.evicted == [(0, 1)]
    assert lru.metrics.decode_ns == 3 * 350 + 150


def test_moe_infinity_released_hits_queue_behind_misses() -> None:
    lines = trace([token(0, (1, 2)), token(1, (0, 2))], 1, 3, top_k=2)
    run = solve(lines, "moe-infinity.released", slots=3)
    # Reached at 100: load 1 100 - 300, computed 350; load 2 300 - 500, computed 550.
    # Reached at 650: load 0 650 - 850, computed 900; 2 was there all the time, and computes after it: 950.
    assert waits(run) == [(100, 300), (350, 500), (650, 850)]
    assert run.counts == (1, 0, 3, 3)
    assert run.metrics.decode_ns == 950
    # Otherwise 2 computes while 0 travels.
    assert solve(lines, LRU, slots=3).metrics.decode_ns == 900


def test_moe_infinity_released_under_speculation_counts_windows() -> None:
    lines = trace(tokens(0, 0, 0, 1, 2, 2, 0), 1, 3)
    run = solve(lines, "moe-infinity.released.spec", slots=2, gamma=1)
    # Window 0 0: drafted 40, reached 140, load 140 - 340, computed 390.
    # Window 0 1: 430, 530; 0 computes - 580; load 1 530 - 730, computed 780.  0 was used in two windows, 1 in one.
    # Window 2 2: 820, 920; 1 leaves; load 920 - 1120, computed 1170.  The last line is a window of its own: 0 hits,
    # reached 1270, computed 1320.
    assert run.evicted == [(0, 1)]
    assert run.counts == (2, 0, 3, 3)
    assert (run.metrics.decode_ns, run.metrics.tokens, run.metrics.steps) == (1320, 7, 4)
    # In window 0 1 the resident 0 is touched first: LRU throws it out.
    lru = solve(lines, LRU, slots=2, gamma=1)
    assert lru.evicted == [(0, 0), (0, 1)]
    assert lru.metrics.decode_ns == 1520
    # The system itself takes one token after the other: three misses, four hits.
    plain = solve(lines, "moe-infinity.released", slots=2, gamma=1)
    assert (plain.metrics.decode_ns, plain.metrics.steps) == (3 * 350 + 4 * 150, 7)


def test_moe_infinity_paper_prefetches_what_a_like_request_used() -> None:
    lines: list[TraceLine] = [
        token(0, (0,), (1,)),
        token(0, (2,), (3,), request=1),
        token(0, (0,), (1,), request=2),
    ]
    run = solve(trace(lines, 2, 4), "moe-infinity.paper", slots=2)
    # Scores, in shares times two, three, ...: those of layer 0 count double, those of layer 1 once.
    # Request 0, nothing stored: (0, 0) reached 100, load 100 - 300, 350; (1, 1) reached 450, load 450 - 650, 700.
    # Request 1, request 0 stored, and its only match.  It says all of (0, 0), worth 2, and all of (1, 1), worth 1.
    #   (0, 2) reached 800; (1, 1) leaves; load 800 - 1000, 1050.  (1, 1) was there when it was wished for.
    #   (1, 3) reached 1150; (0, 2) is worth nothing and leaves; load 1150 - 1350, 1400.
    # Request 2: (0, 0) reached 1500, a hit.  Request 0 is like it, so (1, 1) is wished for, worth 1: (1, 3), worth
    #   nothing, leaves; prefetch 1500 - 1700.  (0, 0) computes - 1550.  Layer 1 reached 1650, late, there 1700, 1750.
    assert run.evicted == [(1, 1), (0, 2), (1, 3)]
    assert prefetches(run) == [((1, 1), 1500, 1700)]
    assert run.counts == (1, 1, 4, 5)
    assert waits(run)[-1] == (1650, 1700)
    assert run.metrics.decode_ns == 1750
    lru = solve(trace(lines, 2, 4), LRU, slots=2)
    assert lru.counts == (0, 0, 6, 6)
    assert lru.metrics.decode_ns == 6 * 350


def test_moe_infinity_paper_weighs_shares_against_distance() -> None:
    lines: list[TraceLine] = [
        token(0, (0,), (0,), (2,)),
        token(1, (0,), (1,), (2,)),
        token(0, (1,), (2,), (0,), request=1),
        token(0, (0,), (1,), (2,), request=2),
    ]
    run = solve(trace(lines, 3, 3), "moe-infinity.paper", slots=2)
    # Layers count 3, 2, 1 when scores are made of shares.  Request 0, by its own counts:
    #   (0, 0) there at 300, 350.  (1, 0) 450 - 650, 700.  (2, 2): (1, 0) leaves, 800 - 1000, 1050.
    #   (0, 0) hit 1150, 1200.  (1, 1): (2, 2) leaves, 1300 - 1500, 1550.  (2, 2): of those
    #   there (0, 0) is worth 3 and (1, 1), with half of its layer, 1: it leaves, 1650 - 1850, 1900.
    # Request 1, matched with request 0: (0, 0) worth 3, (1, 0) and (1, 1) 1 and a trifle, (2, 2) 1.
    #   (0, 1) reached 2000: (2, 2) leaves, 2000 - 2200.  Wished for: (2, 2), there still; then (1, 0), (1, 1), for
    #   which nobody may leave before (0, 1) has computed at 2250: (1, 0) takes its place, 2250 - 2450.
    #   (1, 2) reached 2350 and waits for it: (1, 0) leaves, 2450 - 2650, 2700.  Wished for now: only (2, 2), which
    #   takes the place of (1, 2) then, 2700 - 2900.  (2, 0) reached 2800: (2, 2) leaves, 2900 - 3100, 3150.
    # Request 2: (0, 0) hit, reached 3250, 3300.  At layer 0 of three, (2, 2) counts 1 * (1 - 2/4), both (1, 0) and
    #   (1, 1) 1/2 * (1 - 1/4): the farther one goes first, and (2, 0) leaves for it: 3250 - 3450.
    #   (1, 1) reached 3400, queued until then: (2, 2) leaves, 3450 - 3650, 3700.
    #   (2, 2) reached 3800: (1, 1) leaves, 3800 - 4000, 4050.
    assert prefetches(run) == [((1, 0), 2250, 2450), ((2, 2), 2700, 2900), ((2, 2), 3250, 3450)]
    assert run.evicted == [
        *[(1, 0), (2, 2), (1, 1)],
        *[(2, 2), (0, 1), (1, 0), (1, 2), (2, 2)],
        *[(2, 0), (2, 2), (1, 1)],
    ]
    assert run.counts == (2, 1, 9, 13)
    assert run.metrics.decode_ns == 4050
    # LRU keeps nothing of a cycle of three layers in two slots.
    assert solve(trace(lines, 3, 3), LRU, slots=2).metrics.decode_ns == 12 * 350


def test_moe_infinity_paper_under_speculation_counts_the_tokens_of_a_window() -> None:
    lines: list[TraceLine] = [
        *[token(0, (0,), (1,)), token(1, (0,), (1,)), token(2, (0,), (2,))],
        token(0, (3,), (1,), request=1),
    ]
    run = solve(trace(lines, 2, 4), "moe-infinity.paper.spec", slots=2, gamma=2)
    # Request 0 is one window: drafted 80, (0, 0) reached 180, load - 380, 430.  Layer 1 reached 530: (1, 1) 530 - 730,
    # 780; (1, 2) takes the place of (0, 0): 730 - 930, 980.
    # Request 1: of layer 1's tokens (1, 1) had two, (1, 2) one, and so (1, 2) leaves for (0, 3): reached 1080,
    # load - 1280, 1330.  (1, 1) reached 1430, hit, 1480.
    assert run.evicted == [(0, 0), (1, 2)]
    assert run.counts == (1, 0, 4, 4)
    assert (run.metrics.decode_ns, run.metrics.tokens, run.metrics.steps) == (1480, 4, 2)
    lru = solve(trace(lines, 2, 4), LRU, slots=2, gamma=2)
    assert lru.evicted == [(0, 0), (1, 1), (1, 2)]
    assert lru.metrics.decode_ns == 1680
    assert solve(trace(lines, 2, 4), "moe-infinity.paper", slots=2, gamma=2).metrics.steps == 4


# FineMoE


def test_finemoe_released_fetches_a_whole_layer_ahead_and_stalls_for_it() -> None:
    lines = trace(walk(0, 0), 2, 2)
    run = solve(lines, "finemoe.released", slots=3)
    # Token 0, nothing stored: (0, 0) reached 100, load - 300, 350; (1, 0) reached 450, load - 650, 700.
    # Token 1 reached 800: (0, 0) hits.  The first token's map says (1, 0), which is there, but (1, 1) goes with it, and
    # the copy comes before the computation, for both take turns: load 800 - 1000, (0, 0) computes - 1050.
    # Layer 1 reached 1150, hit, 1200.
    assert prefetches(run) == [((1, 1), 800, 1000)]
    assert waits(run) == [(100, 300), (450, 650), (800, 1000)]
    assert run.counts == (2, 0, 2, 3)
    assert run.metrics.decode_ns == 1200
    assert solve(lines, LRU, slots=3).metrics.decode_ns == 2 * 350 + 2 * 150


def test_finemoe_released_evicts_the_lowest_product_of_probability_and_visits() -> None:
    lines = trace(walk(0, 0, 0), 2, 2)
    run = solve(lines, "finemoe.released", slots=2)
    # Token 1 reached 800: (1, 1) is wished for, but (0, 0) is needed and (1, 0) wished for.  When (0, 0) has computed,
    # at 850, it leaves: 850 - 1050.  Layer 1's attention 1050 - 1150, hit, 1200.
    # Token 2 reached 1300: (0, 0) misses.  Both that are there are wished for, but it has to come: (1, 0) has
    # probability 1 and two visits, (1, 1) has probability 0.  Load 1300 - 1500, 1550.  Layer 1 reached 1650, hit, 1700.
    assert run.evicted == [(0, 0), (1, 1)]
    assert prefetches(run) == [((1, 1), 850, 1050)]
    assert run.counts == (3, 0, 3, 4)
    assert run.metrics.decode_ns == 1700
    # LRU hits from the second token on.
    assert solve(lines, LRU, slots=2).metrics.decode_ns == 2 * 350 + 4 * 150


def test_finemoe_released_never_covers_layer_six() -> None:
    lines = trace([token(at, *[(0,)] * 8) for at in range(2)], 8, 2)
    run = solve(lines, "finemoe.released", slots=16)
    # Token 0: eight misses at 350 ns.  Token 1: eight hits, and behind the attention of the first of them the others
    # of layers 1 to 5 (by embedding) and of layer 7 (seven ahead of layer 0), each of which stops the computation.
    assert [key for key, _, _ in prefetches(run)] == [(layer, 1) for layer in (1, 2, 3, 4, 5, 7)]
    assert run.metrics.decode_ns == 8 * 350 + 8 * 150 + 6 * 200
    assert solve(lines, LRU, slots=16).metrics.decode_ns == 8 * 350 + 8 * 150


def test_finemoe_released_under_speculation_adds_up_the_window() -> None:
    routes = [(0, 1), (0, 2), (0, 2), (0, 0), (0, 0), (0, 0), (0, 2)]
    lines = trace([token(at, (first,), (second,)) for at, (first, second) in enumerate(routes)], 2, 3)
    run = solve(lines, "finemoe.released.spec", slots=3, gamma=2)
    # Window 1: drafted 80, (0, 0) reached 180, load - 380, 430.  Layer 1 reached 530: (1, 1) 530 - 730 and (1, 2)
    # 730 - 930, behind which both compute: 980, 1030.  Its map: (1, 1) a third, (1, 2) two thirds.
    # Window 2: drafted 1110, reached 1210, hit, 1260.  All of layer 1 is wished for; (1, 0) takes the place of (0, 0)
    # when that has computed: 1260 - 1460.  Layer 1 reached 1560: (1, 0) is there, 1610.
    # Window 3, the last token: reached 1710.  (0, 0) misses, and all that are there are wished for.  Probability times
    # visits is 1/3 for (1, 1), 2/3 for (1, 2) and 0 for (1, 0), cut to 0, 0 and 0: the lowest key leaves, (1, 0).
    # Load 1710 - 1910, 1960.  Layer 1 reached 2060, hit, 2110.
    assert run.evicted == [(0, 0), (1, 0)]
    assert prefetches(run) == [((1, 0), 1260, 1460)]
    assert run.counts == (3, 0, 4, 5)
    assert (run.metrics.decode_ns, run.metrics.tokens, run.metrics.steps) == (2110, 7, 3)
    lru = solve(lines, LRU, slots=3, gamma=2)
    assert lru.evicted == [(1, 1)]
    assert lru.metrics.decode_ns == 1860
    assert solve(lines, "finemoe.released", slots=3, gamma=2).metrics.steps == 7


def test_finemoe_released_cuts_its_products_to_whole_numbers() -> None:
    routes = [(0, 0), (0, 0), (0, 1), (0, 0)]
    lines = trace([token(at, (first,), (second,)) for at, (first, second) in enumerate(routes)], 2, 2)
    run = solve(lines, "finemoe.released.spec", slots=2, gamma=2)
    # Window 1: drafted 80, (0, 0) reached 180, load - 380, 430.  Layer 1 reached 530: (1, 0) 530 - 730; (1, 1) takes
    # the place of (0, 0), 730 - 930; both compute: 980, 1030.
    # Window 2, the last token: reached 1130.  Its miss must displace one of two that are wished for.  (1, 0) has
    # probability 2/3, (1, 1) has 1/3, and both have one visit: cut to 0, so the lower key leaves, which is needed next.
    # 1130 - 1330, 1380.  Layer 1 reached 1480: all are worth 0 and none is wished for: (0, 0) leaves, 1680, 1730.
    assert run.evicted == [(0, 0), (1, 0), (0, 0)]
    assert run.counts == (0, 0, 5, 5)
    assert run.metrics.decode_ns == 1730
    # The whole products keep (1, 0): 1080 - 1280, 1330, and a hit at 1430.
    whole = solve(lines, "finemoe.paper.spec", slots=2, gamma=2)
    assert whole.evicted == [(0, 0), (1, 1)]
    assert whole.metrics.decode_ns == 1480
    # LRU, for its own reason, evicts (1, 0) too, but then (1, 1).
    assert solve(lines, LRU, slots=2, gamma=2).evicted == [(0, 0), (1, 0), (1, 1)]


def test_finemoe_paper_keeps_and_prefetches_by_the_map() -> None:
    routes = [(0, 1), (2, 3), (0, 1), (2, 3)]
    lines = trace([token(at, (first,), (second,)) for at, (first, second) in enumerate(routes)], 2, 4)
    run = solve(lines, "finemoe.paper", slots=2)
    # Token 0, nothing stored: (0, 0) load 100 - 300, 350; (1, 1) load 450 - 650, 700.
    # Token 1 reached 800: token 0's map, the only one, wishes for (1, 1), which therefore stays: (0, 0) leaves for
    #   (0, 2), 800 - 1000, 1050.  Layer 1 reached 1150: (1, 1) has probability 1, (0, 2) none: it leaves for (1, 3),
    #   1150 - 1350, 1400.
    # Token 2 reached 1500: like token 0, so (1, 1) is wished for and (1, 3) leaves: 1500 - 1700, 1750.  (1, 1) reached
    #   1850, hit, 1900.
    # Token 3 reached 2000: like token 1, so (1, 3) is wished for.  Neither (0, 0) nor (1, 1) has a probability now, and
    #   (1, 1) has two visits: (0, 0) leaves for (0, 2), 2000 - 2200, 2250; then (1, 1) for the prefetch, 2200 - 2400.
    #   Layer 1 reached 2350, late, there 2400, 2450.
    assert run.evicted == [(0, 0), (0, 2), (1, 3), (0, 0), (1, 1)]
    assert prefetches(run) == [((1, 3), 2200, 2400)]
    assert run.counts == (1, 1, 6, 7)
    assert waits(run)[-2:] == [(2000, 2200), (2350, 2400)]
    assert run.metrics.decode_ns == 2450
    lru = solve(lines, LRU, slots=2)
    assert lru.counts == (0, 0, 8, 8)
    assert lru.metrics.decode_ns == 8 * 350


def test_finemoe_paper_looks_three_layers_ahead() -> None:
    lines = trace([token(at, *[(at % 2,)] * 5) for at in range(4)], 5, 2)
    fast = machine(5, load_ns=40)
    run = solve(lines, "finemoe.paper", slots=6, hardware=fast)
    # A load takes 40 here.  Token 0 fills five slots and token 1 the sixth: five misses each.  What token 0's map
    #   wishes for stays until its layer is reached, then its probability holds it: four of token 1's experts take the
    #   place of (0, 0), (0, 1), (1, 1) and (2, 1), whose scores are lowest, lowest keys first.
    # Token 2 is like token 0: a miss, for which (3, 1) leaves, and four hits.  Eleven misses at 190, four hits: 2690.
    # Token 3 is like token 1.  Reached 2790: (1, 1), (2, 1) and (3, 1) are wished for, in this order.  (0, 1) misses;
    #   (0, 0), with one visit, leaves: 2790 - 2830, computed 2880.  (1, 1) takes the place of (4, 1), of one visit and
    #   no probability yet: 2830 - 2870.  (0, 1) still computes, so (2, 1) takes that of (1, 0), two visits:
    #   2870 - 2910.  (3, 1) takes that of (0, 1): 2910 - 2950.  Then the link rests.
    #   Layer 1 reached 2980, a hit, and wishes for (4, 1), three ahead: (2, 0) leaves, 2980 - 3020.  Four hits: 3480.
    assert run.evicted == [
        *[(0, 0), (0, 1), (1, 1), (2, 1)],
        (3, 1),
        *[(0, 0), (4, 1), (1, 0), (0, 1), (2, 0)],
    ]
    assert prefetches(run) == [
        ((1, 1), 2830, 2870),
        ((2, 1), 2870, 2910),
        ((3, 1), 2910, 2950),
        ((4, 1), 2980, 3020),
    ]
    assert run.counts == (8, 0, 12, 16)
    assert run.metrics.decode_ns == 3480
    assert solve(lines, LRU, slots=6, hardware=fast).metrics.decode_ns == 20 * 190


def test_finemoe_paper_under_speculation_adds_up_the_window() -> None:
    routes = [(0, 1), (0, 1), (0, 2), (3, 0), (3, 3), (3, 3), (1, 2)]
    lines = trace([token(at, (first,), (second,)) for at, (first, second) in enumerate(routes)], 2, 4)
    run = solve(lines, "finemoe.paper.spec", slots=3, gamma=2)
    # Window 1: drafted 80, (0, 0) reached 180, load - 380, 430.  Layer 1 reached 530: (1, 1) 530 - 730, 780 and (1, 2)
    #   730 - 930, 980.  Its map: (1, 1) two thirds, (1, 2) one third.
    # Window 2: drafted 1060, reached 1160: unlike, so both are wished for and (0, 0) leaves for (0, 3), 1160 - 1360,
    #   1410.  Layer 1 reached 1510: (0, 3), of which no map speaks, leaves for (1, 0), 1510 - 1710, 1760; then (1, 2),
    #   less probable than (1, 1), for (1, 3), 1710 - 1910, 1960.
    # Window 3, the last token: reached 2060, unlike both windows; the first one serves.  As nothing is alike its
    #   probabilities must reach 1: not only (1, 1), which is there, but also (1, 2) is wished for.  It gives nothing to
    #   (1, 0), which leaves for (0, 1), 2060 - 2260, 2310, nor to (1, 3), which leaves for (1, 2), 2260 - 2460.
    #   Layer 1 reached 2410, late, there 2460, 2510.
    assert run.evicted == [(0, 0), (0, 3), (1, 2), (1, 0), (1, 3)]
    assert prefetches(run) == [((1, 2), 2260, 2460)]
    assert run.counts == (0, 1, 7, 8)
    assert (run.metrics.decode_ns, run.metrics.tokens, run.metrics.steps) == (2510, 7, 3)
    lru = solve(lines, LRU, slots=3, gamma=2)
    assert lru.evicted == [(0, 0), (1, 1), (1, 2), (0, 3), (1, 0)]
    assert lru.metrics.decode_ns == 2660
    assert solve(lines, "finemoe.paper", slots=3, gamma=2).metrics.steps == 7


# Least-Stale


def of_three(*routes: tuple[int, int, int]) -> TraceInMemory:
    """Tokens of a model with three layers of two experts."""
    return trace([token(at, *[(expert,) for expert in route]) for at, route in enumerate(routes)], 3, 2)


def test_least_stale_evicts_the_layer_that_comes_last() -> None:
    lines = of_three((0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 0, 1))
    run = solve(lines, "least-stale", slots=4)
    # Tokens 0 and 1: three misses, then hit, miss and hit: 1700.  (1, 0) was not used since the first token.
    # Token 2: (0, 1) misses.  Everybody is stale; layers 1 and 2 are about to come, so (0, 0) leaves: 2050.  (1, 0) and
    #   (2, 0) hit: 2350.
    # Token 3: (0, 1) and (1, 0) hit: 2650.  (2, 1) misses: (1, 1) and (2, 0) are stale, and layer 2 comes after layer 1
    #   the next time: (2, 0) leaves: 3000.
    assert run.evicted == [(0, 0), (2, 0)]
    assert run.counts == (6, 0, 6, 6)
    assert run.metrics.decode_ns == 6 * 350 + 6 * 150
    # LRU throws out (1, 0) just before it is needed, then (0, 0); with token 3, (1, 1).
    lru = solve(lines, LRU, slots=4)
    assert lru.evicted == [(1, 0), (0, 0), (1, 1)]
    assert lru.metrics.decode_ns == 7 * 350 + 5 * 150


def test_least_stale_under_speculation_takes_a_window_for_a_pass() -> None:
    lines = of_three((0, 0, 0), (0, 1, 0), (0, 0, 0), (0, 0, 0), (1, 1, 0))
    run = solve(lines, "least-stale.spec", slots=4, gamma=1)
    # Window 1: drafted 40, (0, 0) reached 140, 340, 390.  (1, 0), (1, 1) reached 490, 690, 890, 940.
    #   (2, 0) reached 1040, 1290.
    # Window 2: 1330, three hits: 1780.  Only (1, 1) is not used.
    # Window 3: reached 1880: all are stale, (0, 0) is the one that comes last: load - 2080, 2130.  Two hits: 2430.
    assert run.evicted == [(0, 0)]
    assert run.counts == (5, 0, 5, 5)
    assert (run.metrics.decode_ns, run.metrics.steps) == (2430, 3)
    lru = solve(lines, LRU, slots=4, gamma=1)
    assert lru.evicted == [(1, 1), (0, 0)]
    assert lru.metrics.decode_ns == 2630
    assert solve(lines, "least-stale", slots=4, gamma=1).metrics.steps == 5


# MoE-SpAc; its CPU takes 24 ns per token of an expert.


def spac(lines: TraceInMemory, slots: int, gamma: int, policy: str = "moe-spac") -> Solved:
    return solve(lines, policy, slots, gamma=gamma, hardware=machine(1, host_ns=24))


def test_moe_spac_fetches_what_many_tokens_of_a_window_use() -> None:
    lines = trace(tokens(*[0] * 10, *[1] * 10), 1, 2)
    run = spac(lines, slots=1, gamma=4)
    # Window 1: drafted 160, reached 260, the CPU computes 0 for five tokens: 380.  Five more than none: counter 1, and
    #   0 is fetched, 380 - 580.
    # Window 2: drafted 540, reached 640: hit, 690.  Four more than 1: the counter stays.
    # Window 3: drafted 850, reached 950, the CPU computes 1: 1070.  0 had no token: counter 0.  1 has counter 1: it
    #   takes the place of 0, 1070 - 1270.
    # Window 4: drafted 1230, reached 1330: hit, 1380.
    assert prefetches(run) == [((0, 0), 380, 580), ((0, 1), 1070, 1270)]
    assert run.evicted == [(0, 0)]
    assert run.counts == (2, 0, 2, 2)
    assert waits(run) == [(260, 380), (950, 1070)]
    assert (run.metrics.host_computed, run.metrics.host_busy_ns) == (2, 240)
    assert (run.metrics.decode_ns, run.metrics.tokens, run.metrics.steps) == (1380, 20, 4)
    # Fetched on demand: two misses at 160 + 350 and two hits at 160 + 150.
    assert spac(lines, 1, 4, LRU).metrics.decode_ns == 2 * 510 + 2 * 310


def test_moe_spac_never_displaces_what_has_a_level() -> None:
    lines = trace(tokens(*[0] * 6, 0, *[1] * 5, *[0] * 6), 1, 2)
    run = spac(lines, slots=1, gamma=5)
    # Window 1: drafted 200, reached 300, CPU for six tokens: 444.  0 has counter 1: fetched 444 - 644.
    # Window 2: drafted 644, reached 744: 0 computes - 794, beside it the CPU computes 1 for five tokens: 864.  0 had
    #   one token and keeps its counter; 1 has counter 1 too, but waits for a slot in vain.
    # Window 3: drafted 1064, reached 1164: 0 hits, 1214.
    assert [keys for keys, _, _ in run.transfers] == [[(0, 0)]]
    assert run.counts == (2, 0, 2, 1)
    assert waits(run) == [(300, 444), (794, 864)]
    assert run.metrics.decode_ns == 1214
    # LRU loads 1 in place of 0, in a second wave, and then 0 again.
    lru = spac(lines, 1, 5, LRU)
    assert lru.evicted == [(0, 0), (0, 1)]
    assert lru.metrics.decode_ns == 1700


def test_moe_spac_leaves_single_tokens_to_the_cpu() -> None:
    run = spac(trace(tokens(0, 0, 0), 1, 2), slots=2, gamma=0)
    assert run.counts == (0, 0, 3, 0)
    assert run.metrics.decode_ns == 3 * (100 + 24)
    assert spac(trace(tokens(0, 0, 0), 1, 2), 2, 0, LRU).metrics.decode_ns == 350 + 2 * 150


def test_moe_spac_treats_a_short_prompt_as_a_window() -> None:
    lines: list[TraceLine] = [PrefillLine(0, 30, ((0, 1),)), *tokens(0)]
    run = spac(trace(lines, 1, 2), slots=2, gamma=0)
    # Reached 100, the CPU computes either expert for half of the tokens, 360 ns each: 820.  Both have counter 1 and are
    # wished for; 0 travels 820 - 1020.  The token reaches the layer at 920: 1 is not needed and dropped, 0 not there
    # yet, so the CPU computes it: 944.
    assert run.metrics.ttft_ms == pytest.approx(820e-6)
    assert prefetches(run) == [((0, 0), 820, 1020)]
    assert run.counts[:3] == (0, 1, 0)
    assert run.metrics.decode_ns == 124


def test_moe_spac_fetches_for_a_long_prompt_and_does_not_count_it() -> None:
    lines: list[TraceLine] = [PrefillLine(0, 32, ((0, 1, 2),)), *tokens(0, 0, 0, 0)]
    run = spac(trace(lines, 1, 3), slots=2, gamma=3)
    # Reached 100: 0 100 - 300, 350; 1 300 - 500, 550; 2 takes the place of 0, 500 - 700, 750.
    # The window: drafted 870, reached 970, the CPU computes 0 for four tokens, 1066.  Four are too few to raise a
    # counter of 0 and enough to hold one of 1: nothing is fetched, so there was none.
    assert run.metrics.ttft_ms == pytest.approx(750e-6)
    assert run.evicted == [(0, 0)]
    assert prefetches(run) == []
    assert run.metrics.decode_ns == 316


@pytest.mark.parametrize("policy", ["moe-infinity.released", "finemoe.released"])
def test_loads_go_by_ascending_id(policy: str) -> None:
    run = solve(trace([token(0, (2, 1))], 1, 3, top_k=2), policy, slots=3)
    # Reached at 100.  1: 100 - 300, computed 350 (or 550, where copies and compute take turns); 2: 300 - 500.
    assert [keys[0] for keys, _, _ in run.transfers] == [(0, 1), (0, 2)]
    assert run.metrics.decode_ns == (550 if policy.startswith("moe") else 600)
