"""Mixtral-offloading and AdapMoE on paper, and where they differ from an LRU cache.

The times are those of `tests.sim.paper`: attention and router of a layer take 100 ns, an expert 50, a load 200, a
drafted token 40.  Both systems have spare buffers, four and six, which are taken from the slots; the layers share what
is left.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sim import replay
from sim.__main__ import main
from spmoe.errors import InputError
from spmoe.trace.schema import TokenLine, TraceInMemory
from tests.sim.files import small_trace
from tests.sim.paper import machine, solve, token, tokens, trace, waits

# Mixtral-offloading as released


def test_released_writes_victims_back() -> None:
    lines = trace(tokens(0, 1, 0, 2, 1), 1, 6)
    run = solve(lines, "mixtral-offloading.released", slots=6)
    # Two slots beside four buffers.
    #         reached  load        computed
    # 0 miss     100   100 -  300     350
    # 1 miss     450   450 -  650     700
    # 0 hit      800                  850
    # 2 miss     950   950 - 1350    1400   1 is written back for 200, then 2 comes
    # 1 miss    1500  1500 - 1900    1950   0 likewise
    assert run.counts == (1, 0, 4, 4)
    assert run.evicted == [(0, 1), (0, 0)]
    assert [(start, end) for _, start, end in run.transfers] == [(100, 300), (450, 650), (950, 1350), (1500, 1900)]
    assert run.metrics.decode_ns == 1950
    # LRU with the two slots decides alike but writes nothing back; with all six it has no victims.
    lru = solve(lines, "on-demand.lru", slots=2)
    assert lru.evicted == run.evicted
    assert lru.metrics.decode_ns == 1550
    assert solve(lines, "on-demand.lru", slots=6).counts == (2, 0, 3, 3)


def test_released_computes_hits_behind_the_loads_of_their_layer() -> None:
    lines = trace([token(0, (0, 1)), token(1, (2, 1))], 1, 7, top_k=2)
    run = solve(lines, "mixtral-offloading.released", slots=7)
    # Three slots.  Reached at 100, loads 100 - 300 - 500; only then 0, 550, and 1, 600.
    # Reached at 700, load of 2: 700 - 900; 1 has been there but waits, 950; 2: 1000.
    assert run.counts == (1, 0, 3, 3)
    assert waits(run) == [(100, 500), (700, 900)]
    assert run.metrics.decode_ns == 1000
    # LRU computes 0 while 1 travels, and 1 while 2 travels.
    assert solve(lines, "on-demand.lru", slots=3).metrics.decode_ns == 900


def test_released_queues_three_loads() -> None:
    lines = trace([token(0, (0, 1, 2, 3))], 1, 8, top_k=4)
    slow_start = machine(1, latency_ns=30)
    run = solve(lines, "mixtral-offloading.released", slots=8, hardware=slow_start)
    # Submitted at 100: 130 - 330 - 530 - 730.  The fourth follows as the first arrives, and all compute behind it.
    assert [(start, end) for _, start, end in run.transfers] == [(130, 330), (330, 530), (530, 730), (730, 930)]
    assert waits(run) == [(100, 930)]
    assert run.metrics.decode_ns == 930 + 4 * 50
    # LRU hides all computing but the last.
    assert solve(lines, "on-demand.lru", slots=4, hardware=slow_start).metrics.decode_ns == 980


def test_released_knows_no_speculation_and_its_extension_does() -> None:
    lines = trace(tokens(0, 1), 1, 6)
    run = solve(lines, "mixtral-offloading.released", slots=6, gamma=1)
    assert (run.metrics.decode_ns, run.metrics.steps) == (2 * 350, 2)
    # Drafted 40, reached 140, loads - 340 - 540, computed 590 and 640: one step, taking turns.
    run = solve(lines, "mixtral-offloading.released.spec", slots=6, gamma=1)
    assert (run.metrics.decode_ns, run.metrics.steps) == (640, 1)
    # Under LRU the first computes while the second travels.
    assert solve(lines, "on-demand.lru", slots=6, gamma=1).metrics.decode_ns == 590


# Mixtral-offloading as reported


def test_paper_prefetches_without_displacing_anything() -> None:
    lines = trace([token(0, (0,), (1,), next_gate=((), (1,))), token(1, (0,), (1,), next_gate=((), (2,)))], 2, 3)
    run = solve(lines, "mixtral-offloading.paper", slots=6)
    # One slot per layer.  Layer 0 reached 100: load 100 - 300; behind it the prefetch of (1, 1) 300 - 500.  350.
    # Layer 1 reached 450: on its way; it takes the layer's free slot.  500, 550.
    # Layer 0 reached 650: there.  The prefetch of (1, 2) 650 - 850 goes into a buffer.  700.
    # Layer 1 reached 800: (1, 1) is still there and need not wait: 850.
    assert run.transfers == [([(0, 0)], 100, 300), ([(1, 1)], 300, 500), ([(1, 2)], 650, 850)]
    assert run.evicted == []
    assert run.counts == (2, 1, 1, 3)
    assert (run.metrics.prefetched, run.metrics.prefetched_used) == (2, 1)
    assert waits(run) == [(100, 300), (450, 500)]
    assert run.metrics.decode_ns == 850
    # An LRU cache loads (1, 1) on demand: 700, and two hits.
    assert solve(lines, "on-demand.lru", slots=6).metrics.decode_ns == 1000
    # Straight into a cache of two slots the wrong prefetch displaces (1, 1), which waits for it: 850 - 1050, 1100.
    gate = solve(lines, "next-gate", slots=2)
    assert gate.evicted == [(1, 1), (0, 0)]
    assert gate.metrics.decode_ns == 1100


def test_paper_prefetches_two_experts_at_most() -> None:
    three = (0, 1, 2)
    lines = trace([token(0, three, three, next_gate=((), three))], 2, 6, top_k=3)
    run = solve(lines, "mixtral-offloading.paper", slots=10)
    # Layer 0 reached 100: loads - 300, 500, 700, computed 750.  Behind them (1, 0) and (1, 1) come, - 900 and 1100.
    # Layer 1 reached 850: two on their way, the third is a miss: 1100 - 1300.
    assert [(keys[0], end) for keys, _, end in run.transfers[3:]] == [((1, 0), 900), ((1, 1), 1100), ((1, 2), 1300)]
    assert run.counts == (0, 2, 4, 6)
    assert waits(run)[3:] == [(850, 900), (950, 1100), (1150, 1300)]
    assert run.metrics.decode_ns == 1350
    # On demand layer 1 begins to load at 850: 1050, 1250, 1450.
    assert solve(lines, "on-demand.lru", slots=10).metrics.decode_ns == 1500
    assert solve(lines, "next-gate", slots=10).counts == (0, 3, 3, 6)


def test_paper_extended_merges_the_gates_of_a_window() -> None:
    lines = trace([token(n, (0,), (n + 1,), next_gate=((), (n + 1,))) for n in range(3)], 2, 5)
    run = solve(lines, "mixtral-offloading.paper.spec", slots=10, gamma=2)
    # Three slots per layer.  Drafted 80, layer 0 reached 180: load - 380; prefetches of (1, 1) - 580 and (1, 2) - 780,
    # and of no third.  Computed 430.  Layer 1 reached 530: (1, 3) is a miss: - 980.
    assert [(keys[0], end) for keys, _, end in run.transfers] == [
        ((0, 0), 380),
        ((1, 1), 580),
        ((1, 2), 780),
        ((1, 3), 980),
    ]
    assert run.counts == (0, 2, 2, 4)
    assert waits(run) == [(180, 380), (530, 580), (630, 780), (830, 980)]
    assert (run.metrics.decode_ns, run.metrics.tokens, run.metrics.steps) == (1030, 3, 1)
    # On demand: layer 1 loads from 530 on: 730, 930, 1130.
    assert solve(lines, "on-demand.lru", slots=10, gamma=2).metrics.decode_ns == 1180
    assert solve(lines, "mixtral-offloading.paper", slots=10, gamma=2).metrics.steps == 3


def test_what_preloading_and_the_cache_bring() -> None:
    lines = trace(
        [
            token(0, (0,), (1,), next_gate=((), (1,))),
            token(1, (1,), (1,), next_gate=((), (1,))),
            token(2, (0,), (1,), next_gate=((), (1,))),
        ],
        2,
        3,
    )
    # One slot per layer: layer 0 misses three times, layer 1 once.
    without = solve(lines, "mixtral-offloading.no-preloading", slots=6)
    assert without.counts == (2, 0, 4, 4)
    assert without.evicted == [(0, 0), (0, 1)]
    assert without.metrics.prefetched == 0
    assert without.metrics.decode_ns == 4 * 350 + 2 * 150
    # With prefetch (1, 1) travels 300 - 500, while layer 0 computes, and layer 1 is done at 550 instead of 700.
    assert solve(lines, "mixtral-offloading.paper", slots=6).metrics.decode_ns == 1700 - 150
    # As released it writes two victims back.
    assert solve(lines, "mixtral-offloading.released", slots=6).metrics.decode_ns == 1700 + 2 * 200
    # With one cache of six slots nobody leaves: (0, 0) is there for the third token.
    lru = solve(lines, "on-demand.lru", slots=6)
    assert lru.counts == (3, 0, 3, 3)
    assert lru.metrics.decode_ns == 3 * 350 + 3 * 150


def test_without_its_cache_every_need_is_fetched() -> None:
    lines = trace([token(0, (0,), (0,), (0,)), token(1, (0,), (0,), (0,))], 3, 2)
    run = solve(lines, "mixtral-offloading.no-lru", slots=6)
    # All six experts would fit, but the slots of one layer are all that is used.
    assert run.counts == (0, 0, 6, 6)
    assert run.evicted == [(0, 0), (1, 0), (2, 0), (0, 0)]
    assert run.metrics.decode_ns == 6 * 350
    lru = solve(lines, "on-demand.lru", slots=6)
    assert lru.counts == (3, 0, 3, 3)
    assert lru.metrics.decode_ns == 3 * 350 + 3 * 150


def test_naive_fetches_whole_layers() -> None:
    lines = trace([token(0, (1,), (0,)), token(1, (1,), (0,))], 2, 2)
    run = solve(lines, "mixtral-offloading.naive", slots=4)
    # Every layer: reached after 100, both experts in one batch of 400, 50.
    assert [keys for keys, _, _ in run.transfers] == [[(0, 0), (0, 1)], [(1, 0), (1, 1)]] * 2
    assert [(start, end) for _, start, end in run.transfers] == [(100, 500), (650, 1050), (1200, 1600), (1750, 2150)]
    assert run.counts == (0, 0, 4, 8)
    assert run.metrics.decode_ns == 4 * 550
    lru = solve(lines, "on-demand.lru", slots=4)
    assert lru.counts == (2, 0, 2, 2)
    assert lru.metrics.decode_ns == 2 * 350 + 2 * 150


# AdapMoE: two layers of six experts, top-2.  Six of twelve slots are buffers; of the others every layer gets two, and
# layer 0, for which nothing is prefetched, the two that are left.


def test_adapmoe_gives_the_first_layer_more_slots() -> None:
    cells = ((0, 1), (2, 3), (0, 1), (2, 3))
    lines = trace([token(position, cell, cell) for position, cell in enumerate(cells)], 2, 6, top_k=2)
    run = solve(lines, "adapmoe", slots=12)
    # Layer 0 keeps all four: two misses each for the first two tokens.  Layer 1 keeps two: a miss is all it gets.
    # Two misses take 100 + 200 + 200 + 50, two hits 200.
    assert run.counts == (4, 0, 12, 12)
    assert run.metrics.decode_ns == (2 + 4) * 550 + 2 * 200
    assert all(layer == 1 for layer, _ in run.evicted) and len(run.evicted) == 6
    # Three slots for each layer: one expert leaves as the second token comes, the other of its pair is a hit for the
    # third.  A hit and a miss take 350.  So both layers lose experts.
    even = solve(lines, "on-demand.lru-per-layer", slots=6)
    assert even.counts == (4, 0, 12, 12)
    assert {layer for layer, _ in even.evicted} == {0, 1}
    assert even.metrics.decode_ns == 4 * 550 + 4 * 350
    # One cache of twelve keeps everything.
    assert solve(lines, "on-demand.lru", slots=12).counts == (8, 0, 8, 8)


def predicted(right: tuple[int, int], wrong: tuple[int, int]) -> TraceInMemory:
    """Two tokens that need experts 0 and 1 of both layers; for the first the gate says `right`, then `wrong`."""
    cell = (0, 1)
    lines = [token(0, cell, cell, next_gate=((), right)), token(1, cell, cell, next_gate=((), wrong))]
    return trace(lines, 2, 6, top_k=2)


def test_adapmoe_prefetches_one_expert_and_waits_for_it_even_if_it_is_wrong() -> None:
    slow = machine(2, load_ns=300)
    lines = predicted((0, 1), (2, 3))
    run = solve(lines, "adapmoe", slots=12, hardware=slow)
    # Layer 0 reached 100: loads 100 - 400 - 700, behind them the prefetch of (1, 0) alone: 700 - 1000.  Computed 750.
    # Layer 1 reached 850: (1, 0) on its way, (1, 1) a miss: 1000 - 1300.  Computed 1050 and 1350.
    # Layer 0 reached 1450: there; the prefetch of (1, 2) 1450 - 1750.  Computed 1550.
    # Layer 1 reached 1650: both there, but the prefetch is not: 1750, 1850.
    assert [(keys[0], start, end) for keys, start, end in run.transfers[2:]] == [
        ((1, 0), 700, 1000),
        ((1, 1), 1000, 1300),
        ((1, 2), 1450, 1750),
    ]
    assert run.evicted == []
    assert run.counts == (4, 1, 3, 5)
    assert (run.metrics.prefetched, run.metrics.prefetched_used) == (2, 1)
    assert waits(run) == [(100, 400), (450, 700), (850, 1000), (1050, 1300), (1650, 1750)]
    assert run.metrics.decode_ns == 1850
    # On demand: loads from 850 on, 1150 and 1450, 1500; then four hits.
    assert solve(lines, "on-demand.lru", slots=12, hardware=slow).metrics.decode_ns == 1500 + 400
    # Prefetching both, and never waiting for what is not needed: 1350 and four hits.
    assert solve(lines, "next-gate", slots=12, hardware=slow).metrics.decode_ns == 1350 + 400


def test_adapmoe_passes_over_what_is_there() -> None:
    # The second token's gate wants 0, which is there, and 3: that is the one.
    run = solve(predicted((0, 1), (0, 3)), "adapmoe", slots=12)
    assert [keys[0] for keys, _, _ in run.transfers[2:]] == [(1, 0), (1, 1), (1, 3)]
    assert solve(predicted((0, 1), (0, 1)), "adapmoe", slots=12).metrics.prefetched == 1


def test_adapmoe_demands_wait_for_a_wrong_prefetch() -> None:
    cell = (0, 1)
    lines = trace([token(0, cell, cell, next_gate=((), (2, 3)))], 2, 6, top_k=2)
    run = solve(lines, "adapmoe", slots=12)
    # Layer 0: loads 100 - 300 - 500, then (1, 2) - 700; computed 550.  Layer 1 reached 650: - 900 - 1100, 1150.
    assert [(keys[0], end) for keys, _, end in run.transfers[2:]] == [((1, 2), 700), ((1, 0), 900), ((1, 1), 1100)]
    assert run.metrics.decode_ns == 1150
    assert solve(lines, "on-demand.lru", slots=12).metrics.decode_ns == 1100


def test_adapmoe_extended_predicts_for_windows() -> None:
    cell = (0, 1)
    lines = trace([token(n, cell, cell, next_gate=((), cell)) for n in range(2)], 2, 6, top_k=2)
    run = solve(lines, "adapmoe.spec", slots=12, gamma=1)
    # Drafted 40, layer 0 reached 140: loads - 340 - 540, the prefetch of (1, 0) - 740; computed 590.
    # Layer 1 reached 690: (1, 0) at 740, (1, 1) - 940; 990.
    assert [(keys[0], end) for keys, _, end in run.transfers[2:]] == [((1, 0), 740), ((1, 1), 940)]
    assert run.counts == (0, 1, 3, 4)
    assert waits(run)[2:] == [(690, 740), (790, 940)]
    assert (run.metrics.decode_ns, run.metrics.steps) == (990, 1)
    # On demand: loads from 690 on, 890 and 1090.
    assert solve(lines, "on-demand.lru", slots=12, gamma=1).metrics.decode_ns == 1140
    assert solve(lines, "adapmoe", slots=12, gamma=1).metrics.steps == 2


# AdapMoE's gating, which is lossy


def weighed(*weights: tuple[int, int]) -> TraceInMemory:
    """A token that needs experts 0 and 1 of two layers, with these weights there."""
    line: TokenLine = token(0, (0, 1), (0, 1))._replace(weights=weights)
    return trace([line], 2, 6, top_k=2)


def test_gating_leaves_out_an_expert_of_little_weight() -> None:
    lines = weighed((40000, 25536), (40000, 25536))
    run = solve(lines, "adapmoe.gated", slots=12)
    # 25536 / 65536 = 0.39 is above the first layer's threshold, 0.0103, and below the last one's, 0.467.
    # Layer 0: loads 100 - 300 - 500, computed 550.  Layer 1 reached 650: (1, 0) - 850, 900.
    assert run.counts == (0, 0, 3, 3)
    assert waits(run) == [(100, 300), (350, 500), (650, 850)]
    assert run.metrics.decode_ns == 900
    # With both experts (1, 1) follows - 1050, 1100.
    for name in ("adapmoe", "on-demand.lru"):
        assert solve(lines, name, slots=12).metrics.decode_ns == 1100


@pytest.mark.parametrize(
    ("first", "last", "needs"),
    # Just below and above 675 and 30605 of 65536.
    [((64861, 675), (34931, 30605), 4), ((64862, 674), (34931, 30605), 3), ((64861, 675), (34932, 30604), 3)],
)
def test_gating_goes_by_the_published_thresholds(first: tuple[int, int], last: tuple[int, int], needs: int) -> None:
    assert solve(weighed(first, last), "adapmoe.gated", slots=12).metrics.needs == needs


def test_gating_is_refused_unless_losses_are_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_trace(tmp_path)
    with pytest.raises(InputError) as refusal:
        replay(path, "adapmoe.gated", slots=18)
    message = "policy adapmoe.gated: changes the model's output; --lossy (lossy=True) allows it"
    assert str(refusal.value) == message
    gated = [str(path), "--policy", "adapmoe.gated", "--slots", "18"]
    for command in (["replay", *gated], ["sweep", *gated, "--out", str(tmp_path / "grid.csv")]):
        assert main(command) == 2
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", f"error: {message}\n")
    assert list(tmp_path.iterdir()) == [path]
    # A pattern leaves it out and says so.
    assert replay(path, "adapmoe*", slots=18).skipped == {
        "adapmoe.gated": message.removeprefix("policy adapmoe.gated: ")
    }


def test_gating_runs_where_losses_are_allowed(tmp_path: Path) -> None:
    path = small_trace(tmp_path)
    (result,) = replay(path, "adapmoe.gated", slots=18, lossy=True).results
    assert not result.recipe.lossless
    assert result.to_json()["lossless"] is False
    assert main(["replay", str(path), "--policy", "adapmoe.gated", "--slots", "18", "--lossy"]) == 0
