"""Runs that can be followed on paper.

Unless a test says otherwise: attention and router of a layer take 100 ns, an expert 50, a load 200 on the link with no
latency, a drafted token 40 (see `tests.sim.paper.machine`).
"""

from __future__ import annotations

import pytest

from spmoe.state.events import LayerDone, LayerReached, StepBegun, StepEnded
from spmoe.trace.schema import PrefillLine, TraceLine
from tests.sim.paper import Solved, machine, milliseconds, solve, token, tokens, trace

MS = 1_000_000


def waits(run: Solved) -> list[tuple[int, int]]:
    return [wait for event, _ in run.entries if isinstance(event, LayerDone) for wait in event.waits]


# On demand


def test_on_demand_lru() -> None:
    run = solve(trace(tokens(0, 1, 0, 2, 1), 1, 3), "on-demand.lru", slots=2)
    #         reached  load        computed
    # 0 miss     100   100 -  300     350
    # 1 miss     450   450 -  650     700
    # 0 hit      800                  850
    # 2 miss     950   950 - 1150    1200   1 leaves: 0 was used after it
    # 1 miss    1300  1300 - 1500    1550   0 leaves
    assert run.counts == (1, 0, 4, 4)
    assert run.evicted == [(0, 1), (0, 0)]
    assert [(start, end) for _, start, end in run.transfers] == [(100, 300), (450, 650), (950, 1150), (1300, 1500)]
    assert (run.metrics.decode_ns, run.metrics.tokens, run.metrics.steps) == (1550, 5, 5)
    assert run.metrics.tpot_ms == pytest.approx(310e-6)
    assert run.metrics.stall_ns == run.metrics.link_busy_ns == 800
    assert run.metrics.compute_ns == 5 * 150


def test_hits_compute_while_a_miss_travels() -> None:
    lines = [token(0, (0, 1)), token(1, (2, 1))]
    run = solve(trace(lines, 1, 3, top_k=2), "on-demand.lru", slots=3)
    # Reached at 100, loads 0: 100 - 300 and 1: 300 - 500; 0 computes 300 - 350, 1 computes 500 - 550.
    # Reached at 650, load 2: 650 - 850; 1 is there and computes 650 - 700 at once, 2 computes 850 - 900.
    assert run.counts == (1, 0, 3, 3)
    assert waits(run) == [(100, 300), (350, 500), (700, 850)]
    assert run.metrics.decode_ns == 900


def test_lru_touches_residents_before_misses() -> None:
    # The second token needs 2 (a miss) before 0 (resident), but 0 computes first: afterwards 2 is the most recent, and
    # the third token's 3 pushes out 1, the fourth's 1 pushes out 0, and 2 is still there for the fifth.
    lines = [token(0, (0, 1)), token(1, (2, 0)), token(2, (3, 3)), token(3, (1, 1)), token(4, (2, 2))]
    run = solve(trace(lines, 1, 4, top_k=2), "on-demand.lru", slots=3)
    assert run.evicted == [(0, 1), (0, 0)]
    assert run.counts == (2, 0, 5, 5)


def test_depth_two_hides_the_latency() -> None:
    three = trace([token(0, (0, 1, 2))], 1, 3, top_k=3)
    slow_start = machine(1, latency_ns=30)
    # Two at a time: the latency of the second runs while the first moves, and so on: only the first one shows.
    run = solve(three, "on-demand.lru", slots=3, hardware=slow_start)
    assert [(start, end) for _, start, end in run.transfers] == [(130, 330), (330, 530), (530, 730)]
    assert run.metrics.decode_ns == 780
    # One at a time: every load waits for its own.
    run = solve(three, "on-demand.lru", slots=3, hardware=slow_start, depth=1)
    assert [(start, end) for _, start, end in run.transfers] == [(130, 330), (360, 560), (590, 790)]
    assert run.metrics.decode_ns == 840


def test_a_pool_per_layer() -> None:
    lines = trace([token(position, (position % 2,), (position % 2,)) for position in range(4)], 2, 2)
    # Three slots: two for layer 0, the remainder going to the first layers, one for layer 1.  Layer 0 hits from the
    # third token on, layer 1 never: 6 misses at 350 ns and 2 hits at 150.
    run = solve(lines, "on-demand.lru-per-layer", slots=3)
    assert run.counts == (2, 0, 6, 6)
    assert run.metrics.decode_ns == 6 * 350 + 2 * 150
    # One LRU cache over a cycle of four keys always throws out what comes next.
    run = solve(lines, "on-demand.lru", slots=3)
    assert run.counts == (0, 0, 8, 8)
    assert run.metrics.decode_ns == 8 * 350


def test_waves_through_one_slot() -> None:
    run = solve(trace([token(0, (0, 1)), token(1, (1, 2))], 1, 3, top_k=2), "on-demand.lru", slots=1)
    # Reached at 100: load 0 100 - 300, computes - 350, makes room; load 1 350 - 550, computes - 600.
    # Reached at 700: 1 is there, computes - 750, makes room; load 2 750 - 950, computes - 1000.
    assert [(start, end) for _, start, end in run.transfers] == [(100, 300), (350, 550), (750, 950)]
    assert run.counts == (1, 0, 3, 3)
    assert all(plan.waves for plan in run.plans)
    assert run.metrics.decode_ns == 1000


# Prefill and requests


def test_prefill_counts_as_time_to_first_token_and_leaves_the_cache_warm() -> None:
    lines: list[TraceLine] = [PrefillLine(0, 5, ((0, 1),)), token(5, (0,)), token(6, (2,)), token(0, (1,), request=1)]
    run = solve(trace(lines, 1, 3), "on-demand.lru", slots=3)
    # Prompt: reached at 100, loads - 300 and - 500, computed at 350 and 550: the first token.
    # 0 hit: 550 - 700.  2 miss: 700 - 800 - 1000 - 1050.  Request 1, no prompt, finds 1 where the prompt left it: 150.
    assert run.metrics.ttft_ms == pytest.approx(550e-6)
    assert run.metrics.prefills == 1
    assert run.counts == (2, 0, 1, 1)
    assert (run.metrics.decode_ns, run.metrics.tokens) == (150 + 350 + 150, 3)
    assert run.metrics.link_busy_ns == 200


def test_the_tokens_of_a_prompt_are_those_recorded_or_spread_evenly() -> None:
    for counts, found in ((((5, 3),), (5, 3)), (None, (4, 4))):
        run = solve(trace([PrefillLine(0, 8, ((0, 2),), counts), token(8, (0,))], 1, 3), "on-demand.lru", slots=3)
        prompt, _ = [event for event, _ in run.entries if isinstance(event, LayerReached)]
        assert (prompt.experts, prompt.tokens) == ((0, 2), found)


def test_no_prefill_no_time_to_first_token() -> None:
    assert solve(trace(tokens(0), 1, 2), "on-demand.lru", slots=1).metrics.ttft_ms is None


def test_static_popular_preloads_and_streams() -> None:
    lines = [*tokens(0, 0, 1), *tokens(2, 3, 4, 2, request=1)]
    run = solve(trace(lines, 1, 5), "static.popular", slots=4)
    # Request 0.  The other request uses 2 most, then 3: fixed; two slots are left for the rest.
    #   preloads 2: 0 - 200 and 3: 200 - 400.
    #   0 miss  reached 100, submitted when the link has room for it (200), load 400 - 600, computed 650
    #   0 hit   750, 800
    #   1 miss  900, load - 1100, computed 1150
    # Request 1.  Fixed: 0 (twice) and 1, both there.  2 and 3 are loose now.
    #   2 hit 1250, 1300.  3 hit 1400, 1450.
    #   4 miss 1550, 2 leaves, load - 1750, 1800.  2 miss 1900, 3 leaves, load - 2100, 2150.
    assert [(keys, end) for keys, _, end in run.transfers] == [
        ([(0, 2)], 200),
        ([(0, 3)], 400),
        ([(0, 0)], 600),
        ([(0, 1)], 1100),
        ([(0, 4)], 1750),
        ([(0, 2)], 2100),
    ]
    assert run.evicted == [(0, 2), (0, 3)]
    assert run.counts == (3, 0, 4, 6)
    assert run.metrics.prefetched == 0  # Preloads are none.
    assert run.metrics.decode_ns == 2150


# Prefetching by the next layer's gate


def test_next_gate_overlaps_a_load_with_the_layer_before() -> None:
    lines = trace([token(0, (0,), (1,), next_gate=((), (1,)))], 2, 2)
    # Layer 0 reached at 100: load (0, 0) 100 - 300, behind it the prefetch of (1, 1) 300 - 500.
    # Computed at 350.  Layer 1 reached at 450: in flight, late; it lands at 500 and has computed at 550.
    run = solve(lines, "next-gate", slots=4)
    assert run.transfers == [([(0, 0)], 100, 300), ([(1, 1)], 300, 500)]
    assert run.counts == (0, 1, 1, 2)
    assert waits(run) == [(100, 300), (450, 500)]
    assert run.metrics.decode_ns == 550
    # On demand the second load starts at 450 only.
    assert solve(lines, "on-demand.lru", slots=4).metrics.decode_ns == 700


def test_what_is_in_flight_is_not_torn_for_a_demand_load() -> None:
    run = solve(trace([token(0, (0,), (1,), next_gate=((), (0,)))], 2, 2), "next-gate", slots=4)
    # The gate was wrong: at 450 the link moves (1, 0) until 500; (1, 1) has to wait for it: 500 - 700.
    assert run.transfers == [([(0, 0)], 100, 300), ([(1, 0)], 300, 500), ([(1, 1)], 500, 700)]
    assert run.counts == (0, 0, 2, 3)
    assert (run.metrics.prefetched, run.metrics.prefetched_used) == (1, 0)
    assert run.metrics.decode_ns == 750


def test_a_reached_layer_drops_queued_prefetches_that_it_does_not_need() -> None:
    line = token(0, (0, 1, 2, 3), (4, 6, 0, 1), next_gate=((), (4, 5, 6, 7)))
    run = solve(trace([line], 2, 8, top_k=4), "next-gate", slots=16)
    # Layer 0 at 100: loads - 300, 500, 700, 900; computed at 950.  Prefetches of layer 1 behind them, two submitted.
    # Layer 1 at 1050: 4 in flight and 6 queued are late, 0 and 1 misses; 5 cannot be stopped, 7 is dropped.
    assert [keys[0] for keys, _, _ in run.transfers[4:]] == [(1, 4), (1, 5), (1, 6), (1, 0), (1, 1)]
    assert run.counts == (0, 2, 6, 9)
    assert (run.metrics.prefetched, run.metrics.prefetched_used) == (2, 1)
    # 4 lands at 1100, then 5 at 1300, 6 at 1500, 0 at 1700, 1 at 1900.
    assert waits(run)[-4:] == [(1050, 1100), (1150, 1500), (1550, 1700), (1750, 1900)]
    assert run.metrics.decode_ns == 1950
    # All but four of the eight needs were cold when the step began; of the prefetched, 4 had begun, 6 had not.
    assert (run.metrics.cold_needs, run.metrics.cold_needs_prefetched) == (8, 1)


# Prefetching by the draft's gate


def drafted(gamma: int) -> Solved:
    forecast = ((0,), (0,))
    lines = [token(position, (0,), (0,), draft=forecast) for position in range(gamma + 1)]
    return solve(trace(lines, 2, 2), "spmoe.paper", 4, gamma=gamma, hardware=machine(2, draft_ns=400), cutoff=2)


def test_prefetch_while_drafting_arrives_in_time() -> None:
    run = drafted(gamma=2)
    # The first token's forecast at 400: one batch 400 - 800.  The second token is drafted at 800.
    # Layer 0 reached at 900: there, computed at 950.  Layer 1 at 1050: there, 1100.  Three tokens.
    assert run.transfers == [([(0, 0), (1, 0)], 400, 800)]
    assert run.counts == (2, 0, 0, 2)
    assert run.metrics.prefetch_precision == run.metrics.prefetch_recall == 1
    assert (run.metrics.decode_ns, run.metrics.tokens, run.metrics.stall_ns) == (1100, 3, 0)


def test_prefetch_while_drafting_comes_too_late() -> None:
    run = drafted(gamma=1)
    # The batch moves 400 - 800; layer 0 is reached at 500 and waits for it: 850.  Layer 1 at 950: there, 1000.
    assert run.counts == (1, 1, 0, 2)
    assert waits(run) == [(500, 800)]
    assert (run.metrics.decode_ns, run.metrics.tokens) == (1000, 2)


def test_demand_overtakes_a_queued_prefetch() -> None:
    lines = [token(position, (1,), (0,), (0,), draft=((0,), (0,), (0,))) for position in range(2)]
    run = solve(trace(lines, 3, 2), "spmoe.paper", slots=6, gamma=1, hardware=milliseconds(3), cutoff=3)
    # In ms.  Forecast at 1: (0, 0) 1 - 4 and (1, 0) 4 - 7 are submitted, (2, 0) is queued.
    # Layer 0 at 2 needs (0, 1): it waits for what is submitted, but not for what is queued: 7 - 10; computed 10.5.
    # Layer 1 at 11.5: there, 12.  Layer 2 at 13: (2, 0) moved 10 - 13 and is there the moment it is asked for; 13.5.
    assert [(keys[0], start // MS, end // MS) for keys, start, end in run.transfers] == [
        ((0, 0), 1, 4),
        ((1, 0), 4, 7),
        ((0, 1), 7, 10),
        ((2, 0), 10, 13),
    ]
    assert run.counts == (2, 0, 1, 4)
    assert run.metrics.decode_ns == 13.5 * MS


def test_the_cutoff_layer_ends_the_prefetches() -> None:
    lines = [token(position, (0,), (0,), (0,), draft=((0,), (0,), (0,))) for position in range(2)]
    run = solve(trace(lines, 3, 2), "spmoe.paper", slots=6, gamma=1, hardware=milliseconds(3), cutoff=1)
    # In ms.  The draft reports layer 0 after a third of its token.  (0, 0) moves 1/3 - 3 1/3; computed at 3 5/6.
    # (1, 0) and (2, 0) are loaded on demand: 4 5/6 - 7 5/6, 8 1/3, 9 1/3 - 12 1/3, 12 5/6.
    assert run.counts == (0, 1, 2, 3)
    assert run.metrics.prefetched == 1
    assert run.transfers[0] == ([(0, 0)], MS // 3, MS // 3 + 3 * MS)
    assert run.metrics.decode_ns == MS // 3 + 12.5 * MS


# Windows


def rejecting(rejected: tuple[tuple[tuple[int, ...]], ...]) -> Solved:
    lines = [token(0, (0,), agree=False, rejected=rejected), token(1, (1,)), token(2, (2,))]
    return solve(trace(lines, 1, 4), "on-demand.lru", slots=4, gamma=2)


def test_after_a_rejection_the_tokens_at_those_positions_stand_in() -> None:
    run = rejecting(())
    # Drafted at 80, reached at 180: loads of 0, 1, 2 until 380, 580, 780; computed at 830.  One token.
    # The window at line 1 has two lines, so one token is drafted: 870, reached at 970, both there: 1070.  Two tokens.
    assert run.counts == (2, 0, 3, 3)
    assert (run.metrics.decode_ns, run.metrics.tokens, run.metrics.steps) == (1070, 3, 2)
    assert run.bound.stand_ins == 2


def test_recorded_inputs_after_a_rejection_are_used() -> None:
    run = rejecting((((3,),), ((3,),)))
    # The first window is 0, 3, 3: reached at 180, loads until 380 and 580, computed at 630.
    # The second is 1, 2: drafted at 670, reached at 770, loads until 970 and 1170, computed at 1220.
    assert [plan.misses for plan in run.plans] == [(0, 3), (1, 2)]
    assert run.counts == (0, 0, 4, 4)
    assert (run.metrics.decode_ns, run.metrics.tokens) == (1220, 3)
    assert run.bound.stand_ins == 0


def test_what_is_not_recorded_after_a_rejection_stands_in() -> None:
    run = rejecting((((3,),),))
    assert [plan.hits + plan.misses for plan in run.plans] == [(0, 3, 2), (2, 1)]
    assert run.bound.stand_ins == 1


def test_a_request_that_ended_inside_its_window() -> None:
    lines = [token(0, (0,)), token(1, (1,), rejected=(((2,),), ((2,),), ((3,),))), token(0, (3,), request=1)]
    run = solve(trace(lines, 1, 4), "on-demand.lru", slots=4, gamma=4)
    # Four tokens are drafted though the second ends the request: 160, reached at 260, loads of 0, 1, 2 and 3 until
    # 1060, computed at 1110; two tokens.  Request 1 has one token, and finds 3: 1110 + 150.
    assert [event.limit for event, _ in run.entries if isinstance(event, StepBegun)] == [4, 0]
    assert [(event.experts, event.tokens) for event, _ in run.entries if isinstance(event, LayerReached)] == [
        ((0, 1, 2, 3), (1, 1, 2, 1)),
        ((3,), (1,)),
    ]
    assert [event.accepted for event, _ in run.entries if isinstance(event, StepEnded)] == [1, 0]
    assert (run.metrics.decode_ns, run.metrics.tokens, run.metrics.steps) == (1260, 3, 2)
    assert (run.bound.needs, run.bound.tokens, run.bound.stand_ins) == (5, 3, 0)


def test_an_agreement_run_is_cut_by_the_window() -> None:
    # gamma 4, agree 1, 1, 0, 1, 1 (the design's example): three tokens put out, the next window starts at line 3.
    lines = [token(position, (position,), agree=position != 2) for position in range(5)]
    run = solve(trace(lines, 1, 5), "on-demand.lru", slots=5, gamma=4)
    assert [plan.hits + plan.misses for plan in run.plans] == [(0, 1, 2, 3, 4), (3, 4)]
    assert (run.metrics.tokens, run.metrics.steps) == (5, 2)


# Clairvoyance and the bound


@pytest.mark.parametrize("slots", [2, 3])
def test_clairvoyant_prefetches(slots: int) -> None:
    lines = trace([token(0, (0,), (0,)), token(1, (1,), (0,))], 2, 2)
    run = solve(lines, "clairvoyant", slots, hardware=milliseconds(2))
    # In ms.  Loads from the start, back to back: (0, 0) 0 - 3, (1, 0) 3 - 6, (0, 1) 6 - 9; with two slots the last
    # takes the place of (0, 0), which has computed at 3.5 and is never needed again.
    # Layer 0 at 1, there at 3, 3.5; layer 1 at 4.5, there at 6, 6.5; layer 0 at 7.5, there at 9, 9.5; layer 1: 11.
    assert [(keys[0], start // MS, end // MS) for keys, start, end in run.transfers] == [
        ((0, 0), 0, 3),
        ((1, 0), 3, 6),
        ((0, 1), 6, 9),
    ]
    assert run.evicted == ([(0, 0)] if slots == 2 else [])
    assert run.metrics.decode_ns == 11 * MS
    # On demand: three misses at 4.5 and a hit at 1.5.  The bound: three loads, no latency, all compute hidden.
    assert solve(lines, "on-demand.lru", slots, hardware=milliseconds(2)).metrics.decode_ns == 15 * MS
    assert run.bound.link_ns == 9 * MS
    assert run.bound.compute_ns == 4 * 1.5 * MS
    assert run.bound.tpot_ms == 4.5


@pytest.mark.parametrize(("slots", "loads"), [(1, 5), (2, 4), (3, 3)])
def test_bound_of_a_cycle(slots: int, loads: int) -> None:
    # 0 1 2 0 1 2.  Three slots: the first round only.  Two: 0 and 1 are kept, 2 passes through twice.  One: 0 is kept.
    run = solve(trace(tokens(0, 1, 2, 0, 1, 2), 1, 3), "on-demand.lru", slots)
    assert run.bound.loads == loads
    assert (run.bound.needs, run.bound.tokens, run.bound.steps, run.bound.widest) == (6, 6, 6, 1)
    assert run.bound.link_ns == loads * 200
    assert run.bound.compute_ns == 6 * 150
    assert run.bound.tpot_ms == max(loads * 200, 900) / 6 / 1e6
    # LRU keeps nothing of a cycle longer than the cache.
    assert run.metrics.loads == (3 if slots == 3 else 6)


def test_bound_after_a_prefill_starts_with_what_is_needed_next() -> None:
    prompt = PrefillLine(0, 4, ((2,),))
    run = solve(trace([prompt, *tokens(0, 1, 2, 0, 1, 2)], 1, 3), "on-demand.lru", slots=2)
    # 0 and 1 are there, whatever the prompt touched, and stay: only 2 is loaded, twice.
    assert run.bound.loads == 2


def test_bound_is_ruled_by_compute_where_the_link_is_fast() -> None:
    run = solve(trace(tokens(0, 1), 1, 2), "on-demand.lru", 1, hardware=machine(1, load_ns=10))
    assert run.bound.tpot_ms == 150e-6
    assert run.bound.link_utilisation == 20 / 300
