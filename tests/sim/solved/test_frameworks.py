"""What frameworks do without any cache of experts, on paper, and where that differs from an LRU cache.

The times are those of `tests.sim.paper`: attention and router of a layer take 100 ns, an expert 50 on the GPU, a load
200.  The CPU takes 60 for each token of an expert.
"""

from __future__ import annotations

import pytest

from spmoe.trace.schema import PrefillLine, TraceLine
from tests.sim.paper import machine, solve, token, tokens, trace, waits

HOST_NS = 60


# Whole layers


def test_accelerate_streams_the_layers_that_do_not_fit() -> None:
    lines = trace([token(0, (0,), (0,), (0,)), token(1, (1,), (0,), (1,))], 3, 2)
    run = solve(lines, "accelerate.layer-stream", slots=4)
    # Two of the four slots stage a layer, so layer 0 stays.  Copies and compute take turns.
    #   preload both of layer 0: 0 - 400.  Attention waits for it: 400 - 500; there, computed 550.
    #   layer 1 reached 650: both experts 650 - 1050, computed 1100.  Layer 2 reached 1200: - 1600, 1650.
    # Second token: layer 0 reached 1750: there, 1800.  Layer 1: 1900 - 2300, 2350, although its expert is the same.
    # Layer 2: 2450 - 2850, 2900.
    assert run.transfers == [
        ([(0, 0), (0, 1)], 0, 400),
        ([(1, 0), (1, 1)], 650, 1050),
        ([(2, 0), (2, 1)], 1200, 1600),
        ([(1, 0), (1, 1)], 1900, 2300),
        ([(2, 0), (2, 1)], 2450, 2850),
    ]
    assert run.evicted == [(1, 0), (1, 1), (2, 0), (2, 1), (1, 0), (1, 1)]
    assert run.counts == (2, 0, 4, 10)
    assert waits(run) == [(0, 400), (650, 1050), (1200, 1600), (1900, 2300), (2450, 2850)]
    assert run.metrics.decode_ns == 2900
    # LRU loads what is needed: (0, 0), (1, 0) and (2, 0), then (0, 1) and (2, 1), with a hit in between.
    lru = solve(lines, "on-demand.lru", slots=4)
    assert lru.counts == (1, 0, 5, 5)
    assert lru.metrics.decode_ns == 5 * 350 + 150


def test_accelerate_keeps_nothing_in_slots_that_are_too_few_for_a_layer() -> None:
    lines = trace([token(0, (0,), (0,)), token(1, (0,), (0,))], 2, 2)
    run = solve(lines, "accelerate.layer-stream", slots=3)
    # Two slots stage a layer; the third is no layer's.  Four times 100 + 400 + 50.
    assert run.counts == (0, 0, 4, 8)
    assert run.metrics.decode_ns == 4 * 550
    assert solve(lines, "on-demand.lru", slots=3).counts == (2, 0, 2, 2)


def test_accelerate_loads_once_what_fits() -> None:
    lines = trace([token(0, (0,), (0,)), token(1, (1,), (1,))], 2, 2)
    run = solve(lines, "accelerate.layer-stream", slots=4)
    # One batch of four: 0 - 800.  Then four layers at 150.  LRU loads each when it is needed.
    assert run.counts == (4, 0, 0, 4)
    assert run.metrics.decode_ns == 800 + 4 * 150
    assert solve(lines, "on-demand.lru", slots=4).counts == (0, 0, 4, 4)


# The CPU


def test_with_cpu_moe_nothing_is_cached() -> None:
    lines: list[TraceLine] = [PrefillLine(0, 32, ((0,), (1,))), token(32, (0,), (1,)), token(33, (0,), (1,))]
    cpu = machine(2, host_ns=HOST_NS)
    run = solve(trace(lines, 2, 2), "llamacpp.cpu-moe", slots=2, hardware=cpu)
    # A prompt of 32 tokens fetches: reached 100, load - 300, computed 350; 450, 650, 700.
    # What it needed is still in the slots, but the CPU computes all the same: reached 800, - 860; 960, - 1020.  Again:
    # 1120, 1180, 1280, 1340.
    assert [(start, end) for _, start, end in run.transfers] == [(100, 300), (450, 650)]
    assert run.metrics.ttft_ms == pytest.approx(700e-6)
    assert run.counts == (0, 0, 4, 0)
    assert (run.metrics.host_computed, run.metrics.host_busy_ns) == (4, 4 * HOST_NS)
    assert waits(run)[2:] == [(800, 860), (960, 1020), (1120, 1180), (1280, 1340)]
    assert (run.metrics.decode_ns, run.metrics.stall_ns) == (640, 0)
    # LRU finds all that it needs.
    lru = solve(trace(lines, 2, 2), "on-demand.lru", slots=2, hardware=cpu)
    assert lru.counts == (4, 0, 0, 0)
    assert lru.metrics.decode_ns == 4 * 150


@pytest.mark.parametrize(("prompt", "ttft_ns"), [(31, 100 + 31 * HOST_NS), (32, 100 + 200 + 50)])
def test_with_cpu_moe_short_prompts_are_computed_by_the_cpu(prompt: int, ttft_ns: int) -> None:
    lines = trace([PrefillLine(0, prompt, ((0,),)), token(prompt, (0,))], 1, 2)
    run = solve(lines, "llamacpp.cpu-moe", slots=2, hardware=machine(1, host_ns=HOST_NS))
    assert run.metrics.ttft_ms == pytest.approx(ttft_ns / 1e6)
    assert run.metrics.host_computed == 1


def test_with_cpu_moe_an_expert_takes_its_time_for_every_token_of_a_window() -> None:
    lines = trace([token(0, (0,)), token(1, (0,)), token(2, (1,))], 1, 2)
    run = solve(lines, "llamacpp.cpu-moe", slots=2, gamma=2, hardware=machine(1, host_ns=HOST_NS))
    # Drafted 80, reached 180: expert 0 for two tokens - 300, expert 1 for one - 360.
    assert waits(run) == [(180, 300), (300, 360)]
    assert (run.metrics.decode_ns, run.metrics.tokens) == (360, 3)
    # On demand: loads - 380 and - 580, the second computed at 630.
    assert solve(lines, "on-demand.lru", slots=2, gamma=2).metrics.decode_ns == 630


def test_with_n_cpu_moe_the_last_layers_are_on_the_gpu() -> None:
    lines = trace([token(0, (0,), (0,), (0,)), token(1, (1,), (1,), (1,))], 3, 2)
    cpu = machine(3, host_ns=HOST_NS)
    run = solve(lines, "llamacpp.n-cpu-moe", slots=4, hardware=cpu)
    # Two of the four slots are left for prompts, so layer 2 is there: preloads 0 - 200 - 400.
    # Layer 0 reached 100, CPU - 160; layer 1 reached 260, CPU - 320; layer 2 reached 420: there, 470.  Then the same
    # with the other experts: 630, 790, 940.
    assert run.transfers == [([(2, 0)], 0, 200), ([(2, 1)], 200, 400)]
    assert run.counts == (2, 0, 4, 2)
    assert waits(run) == [(100, 160), (260, 320), (570, 630), (730, 790)]
    assert run.metrics.host_computed == 4
    assert (run.metrics.decode_ns, run.metrics.stall_ns) == (940, 0)
    # LRU misses six times.
    lru = solve(lines, "on-demand.lru", slots=4, hardware=cpu)
    assert lru.counts == (0, 0, 6, 6)
    assert lru.metrics.decode_ns == 6 * 350


# Fixed sets


def test_the_best_fixed_set_survives_a_cycle() -> None:
    lines = trace(tokens(0, 1, 2, 3, 0, 1, 2, 3), 1, 4)
    run = solve(lines, "static.hindsight", slots=3)
    # All are needed twice, so 0 is fixed, and two slots are left for the others.
    #   preload 0: 0 - 200.  Reached 100: on its way, 250.
    #   1: 350 - 550, 600.  2: 700 - 900, 950.  3: 1050 - 1250, 1300, 1 leaves.
    #   0 hit 1400, 1450.  1: - 1800, 2 leaves.  2: - 2150, 3 leaves.  3: - 2500, 1 leaves.
    assert run.counts == (1, 1, 6, 7)
    assert run.evicted == [(0, 1), (0, 2), (0, 3), (0, 1)]
    assert run.metrics.decode_ns == 2500
    # LRU keeps nothing of a cycle longer than the cache.
    lru = solve(lines, "on-demand.lru", slots=3)
    assert lru.counts == (0, 0, 8, 8)
    assert lru.metrics.decode_ns == 2800


def test_hindsight_counts_windows_and_not_tokens() -> None:
    # 0 has three tokens in one window; 3 has a token in each of two, and so is fixed: preloaded 0 - 200.
    lines = trace([token(0, (0,)), token(1, (0,)), token(2, (0,)), token(3, (3,)), *tokens(3, request=1)], 1, 4)
    run = solve(lines, "static.hindsight", slots=3, gamma=3)
    # Drafted 120, reached 220: 3 is there, 270; 0: 220 - 420, 470.  Then 570, 620.
    assert run.transfers == [([(0, 3)], 0, 200), ([(0, 0)], 220, 420)]
    assert run.counts == (2, 0, 1, 2)
    assert run.metrics.decode_ns == 620
    # On demand: 0 - 420, 470, 3 - 620, 670; then 820.
    assert solve(lines, "on-demand.lru", slots=3, gamma=3).metrics.decode_ns == 820


# Fiddler: the CPU, or a copy


def test_fiddler_computes_on_the_cpu_what_a_copy_would_delay() -> None:
    lines: list[TraceLine] = [PrefillLine(0, 4, ((0, 1),)), token(4, (0, 1)), token(0, (0, 3), request=1)]
    cpu = machine(1, latency_ns=10, copy_ns=5, host_ns=HOST_NS)
    run = solve(trace(lines, 1, 4, top_k=2), "fiddler", slots=2, hardware=cpu)
    # The other request uses 0 first, so 0 is fixed; one slot is left.  A load takes 210, the CPU less for up to three
    # tokens.  On the link a copy in three pieces takes two times 5 more.  All take turns.
    #   preload 0: 10 - 220.  Prompt: attention 220 - 320.  1 has four tokens and is copied: 330 - 540; 0 waits for the
    #   copy, 590, then 1, 640: the first token.
    #   reached 740.  0: 790.  1 is still in the spare slot but has one token: the CPU begins when the GPU is through,
    #   after a round trip of 20: 810 - 870.
    #   Request 1, the same fixed.  Reached 970.  0: 1020.  3 on the CPU: 1040 - 1100.
    assert run.transfers == [([(0, 0)], 10, 220), ([(0, 1)], 330, 540)]
    assert run.metrics.ttft_ms == pytest.approx(640e-6)
    assert run.counts == (2, 0, 2, 1)
    assert waits(run) == [(0, 220), (320, 540), (790, 870), (1020, 1100)]
    assert (run.metrics.host_computed, run.metrics.host_busy_ns) == (2, 2 * HOST_NS)
    # What the CPU computes is no stall, the round trips before it are.
    assert (run.metrics.decode_ns, run.metrics.stall_ns) == (460, 40)
    # LRU: 0 and 1 are there after the prompt; two hits, then a hit and a load of 210 from 860 on.
    lru = solve(trace(lines, 1, 4, top_k=2), "on-demand.lru", slots=2, hardware=cpu)
    assert lru.counts == (3, 0, 1, 1)
    assert lru.metrics.decode_ns == 200 + 100 + 210 + 50


@pytest.mark.parametrize(("prompt", "ttft_ns"), [(1, 300 + 100), (2, 300 + 200 + 50)])
def test_fiddler_copies_where_both_take_the_same_time(prompt: int, ttft_ns: int) -> None:
    lines: list[TraceLine] = [PrefillLine(0, prompt, ((1,),)), token(prompt, (1,)), *tokens(0, request=1)]
    run = solve(trace(lines, 1, 3), "fiddler", slots=2, hardware=machine(1, host_ns=100))
    # Preload of 0: - 200, attention - 300.  Then the CPU for one token, 100, or a copy for two, which take the CPU 200.
    assert run.metrics.ttft_ms == pytest.approx(ttft_ns / 1e6)


def test_fiddler_serves_a_window_by_the_same_rule() -> None:
    lines = [token(0, (1,)), token(1, (1,)), token(2, (1,)), token(3, (1,)), token(4, (2,)), *tokens(0, request=1)]
    cpu = machine(1, host_ns=HOST_NS)
    run = solve(trace(lines, 1, 3), "fiddler.spec", slots=2, gamma=4, hardware=cpu)
    # 0 is fixed: preload 0 - 200, then the draft 200 - 360, attention - 460.  1 has four tokens and is copied: - 660,
    # 710.  2 has one: the CPU begins when the GPU is through, 710 - 770.
    assert run.transfers[1] == ([(0, 1)], 460, 660)
    assert waits(run)[:2] == [(460, 660), (710, 770)]
    assert run.metrics.host_computed == 1 + 1  # In request 1, 1 is fixed, and 0 has a single token.
    # Without speculation every token is alone, and nothing is ever copied for it.
    alone = solve(trace(lines, 1, 3), "fiddler", slots=2, gamma=4, hardware=cpu)
    assert (alone.metrics.steps, alone.metrics.host_computed) == (6, 6)
    assert solve(trace(lines, 1, 3), "on-demand.lru", slots=2, gamma=4).counts == (0, 0, 3, 3)


def test_fiddler_spec_mixes_cpu_and_waves() -> None:
    # CPU 50 ns a token, load 200: up to 3 tokens go to the CPU (a tie is fetched), 4 and more through one slot.
    # Request 0 has popular experts of its own; request 1's window: 1 x4, 2 x4, 3 x1.
    lines = [*tokens(0), *tokens(1, 1, 1, 1, 2, 2, 2, 2, 3, request=1)]
    run = solve(trace(lines, 1, 4), "fiddler.spec", slots=1, gamma=8, hardware=machine(1, host_ns=50))
    assert run.metrics.host_computed == 2
    assert run.metrics.tokens == 10


@pytest.mark.parametrize(("prompt", "experts"), [(17, 16), (31, 2)])
def test_a_prompt_below_32_tokens_is_computed_on_the_cpu(prompt: int, experts: int) -> None:
    lines = [PrefillLine(0, prompt, (tuple(range(experts)),)), *tokens(0)]
    run = solve(trace(lines, 1, experts), "llamacpp.cpu-moe", slots=experts, hardware=machine(1, host_ns=24))
    assert run.plans[0].host == tuple(range(experts))
    assert not run.transfers
