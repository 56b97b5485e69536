"""Every field of a runtime by itself, and what happens at equal times.

The times are those of `tests.sim.paper`: attention and router of a layer take 100 ns, an expert 50, a load 200, a
drafted token 40.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from spmoe.policy.parts.runtime import NATIVE, Runtime
from spmoe.state.events import BatchArrived, Computed, Event, HostComputed, LayerReached
from spmoe.trace.schema import TraceInMemory
from tests.sim.paper import Solved, machine, solve, token, tokens, trace, waits


def spans(run: Solved) -> list[tuple[int, int]]:
    """From when to when the link moved each batch."""
    return [(start, end) for _, start, end in run.transfers]


# Copies and compute


def test_with_turns_compute_waits_for_what_is_submitted() -> None:
    lines = trace([token(0, (0,), (1,), next_gate=((), (1,)))], 2, 2)
    # Side by side: (0, 0) 100 - 300, computed 350, while the prefetch of (1, 1) moves 300 - 500; reached 450, 500, 550.
    run = solve(lines, "next-gate", slots=4)
    assert waits(run) == [(100, 300), (450, 500)]
    assert run.metrics.decode_ns == 550
    # In turns: (0, 0) has to wait for the prefetch as well: 500, 550.  Layer 1 reached 650: there, 700.
    run = solve(lines, "next-gate", slots=4, runtime=Runtime(overlap=False))
    assert spans(run) == [(100, 300), (300, 500)]
    assert waits(run) == [(100, 500)]
    assert run.counts == (1, 0, 1, 2)
    assert run.metrics.decode_ns == 700


def test_with_turns_copies_wait_for_what_computes() -> None:
    lines = trace(tokens(0, 1, 2, 3), 1, 6)
    # Four preloads, two submitted at a time.  Side by side they move back to back; the third token is reached at 550.
    run = solve(lines, "static.hindsight", slots=6)
    assert spans(run) == [(0, 200), (200, 400), (400, 600), (600, 800)]
    assert waits(run) == [(100, 200), (350, 400), (550, 600), (750, 800)]
    assert run.metrics.decode_ns == 850
    # In turns attention comes behind the first two, 400 - 500, and the others, submitted at 200 and 400, behind it:
    # 500 - 700 - 900.  Expert 0 computes 900 - 950; then three tokens at 150.
    run = solve(lines, "static.hindsight", slots=6, runtime=Runtime(overlap=False))
    assert spans(run) == [(0, 200), (200, 400), (500, 700), (700, 900)]
    assert waits(run) == [(0, 400), (500, 900)]
    assert run.metrics.decode_ns == 950 + 3 * 150


def test_with_turns_the_draft_takes_its_own() -> None:
    lines = trace([token(position, (0,), (0,), draft=((0,), (0,))) for position in range(2)], 2, 2)
    slow = machine(2, draft_ns=400)
    # The forecast at 400, when the draft is through: one batch 400 - 800.  Attention next: 800 - 900, side by side at
    # 400 - 500.  Then two tokens pass two layers that are there.
    run = solve(lines, "spmoe.paper", 4, gamma=1, cutoff=2, hardware=slow, runtime=Runtime(overlap=False))
    assert spans(run) == [(400, 800)]
    assert waits(run) == [(400, 800)]
    assert run.counts == (2, 0, 0, 2)
    assert run.metrics.decode_ns == 800 + 2 * 150
    assert solve(lines, "spmoe.paper", 4, gamma=1, cutoff=2, hardware=slow).metrics.decode_ns == 1000


# GPU and CPU


def split(second: Sequence[int] = (0, 3)) -> TraceInMemory:
    """Two requests of a token each; 0 is used by both, and so is fixed in both."""
    return trace([token(0, (0, 1)), token(0, tuple(second), request=1)], 1, 4, top_k=2)


def test_the_cpu_computes_beside_the_gpu_or_after_it() -> None:
    cpu = machine(1, host_ns=60)
    # Preload of 0: - 200.  Reached 100: the CPU computes 1 until 160.  0 arrives, 250.
    # Reached 350: 0 until 400, and on the CPU 3 until 410.
    run = solve(split(), "fiddler", slots=2, hardware=cpu, runtime=NATIVE)
    assert waits(run) == [(100, 160), (160, 200), (400, 410)]
    assert (run.metrics.decode_ns, run.metrics.stall_ns) == (410, 40)
    # After it: 0 arrives at 200, 250; then 1 until 310.  Reached 410: 0 until 460, 3 until 520.
    run = solve(split(), "fiddler", slots=2, hardware=cpu, runtime=Runtime(host_overlap=False))
    assert waits(run) == [(100, 200), (250, 310), (460, 520)]
    assert (run.metrics.decode_ns, run.metrics.stall_ns) == (520, 100)


def test_hidden_states_go_to_the_cpu_and_back_once_per_layer() -> None:
    lines = trace([token(0, (0, 1), (1, 2))], 2, 3, top_k=2)
    run = solve(lines, "llamacpp.cpu-moe", slots=3, hardware=machine(2, latency_ns=10, host_ns=60))
    # Reached 100, there and back 20: 120 - 180 - 240.  Reached 340: 360 - 420 - 480.
    assert [event for event, _ in run.entries if isinstance(event, HostComputed)] == [
        HostComputed(180, 0, 0, started=120, ended=180),
        HostComputed(240, 0, 1, started=180, ended=240),
        HostComputed(420, 1, 1, started=360, ended=420),
        HostComputed(480, 1, 2, started=420, ended=480),
    ]
    assert (run.metrics.decode_ns, run.metrics.stall_ns) == (480, 40)


# What a load costs


def test_victims_are_written_back_at_the_speed_of_a_load() -> None:
    lines = trace(tokens(0, 1, 0, 2, 1), 1, 3)
    # The third and the fourth load evict somebody.
    run = solve(lines, "on-demand.lru", slots=2, runtime=Runtime(write_back=True))
    assert spans(run) == [(100, 300), (450, 650), (950, 1350), (1500, 1900)]
    assert run.metrics.decode_ns == 1950
    assert run.metrics.link_busy_ns == 1200
    assert solve(lines, "on-demand.lru", slots=2).metrics.decode_ns == 1550


def test_only_the_loads_of_a_batch_that_evict_are_preceded_by_a_write_back() -> None:
    lines = trace([token(0, (0, 1)), token(1, (2, 3))], 1, 4, top_k=2)
    run = solve(lines, "mixtral-offloading.naive", slots=4, runtime=Runtime(write_back=True))
    assert spans(run) == [(100, 900)]  # Four loads into free slots.
    lines = trace([token(0, (0,), (0,), (0,))], 3, 2)
    run = solve(lines, "mixtral-offloading.naive", slots=2, runtime=Runtime(write_back=True))
    assert spans(run) == [(100, 500), (650, 1450), (1600, 2400)]


def test_pieces_cost_a_copy_each() -> None:
    copying = machine(1, copy_ns=10)
    run = solve(trace(tokens(0, 1), 1, 2), "on-demand.lru", 2, hardware=copying, runtime=Runtime(copies_per_load=3))
    # 200 + 2 x 10 each.
    assert spans(run) == [(100, 320), (470, 690)]
    assert run.metrics.decode_ns == 740
    assert solve(trace(tokens(0, 1), 1, 2), "on-demand.lru", 2, hardware=copying).metrics.decode_ns == 700


@pytest.mark.parametrize(("pieces", "load_ns"), [(1, 400), (2, 400 + 3 * 10), (3, 400 + 5 * 10)])
def test_pieces_of_neighbours_do_not_merge(pieces: int, load_ns: int) -> None:
    # Experts 0 and 1 lie side by side: whole they are one copy, in pieces as many as there are.
    lines = trace([token(0, (0, 1))], 1, 2, top_k=2)
    runtime = Runtime(copies_per_load=pieces)
    run = solve(lines, "mixtral-offloading.naive", 2, hardware=machine(1, copy_ns=10), runtime=runtime)
    assert spans(run) == [(100, 100 + load_ns)]


def test_a_submission_costs_the_same_for_any_number_of_loads() -> None:
    runtime = Runtime(submission_ns=25)
    run = solve(trace(tokens(0, 1), 1, 2), "on-demand.lru", 2, runtime=runtime)
    assert spans(run) == [(100, 325), (475, 700)]
    run = solve(trace([token(0, (0, 1))], 1, 2, top_k=2), "mixtral-offloading.naive", 2, runtime=runtime)
    assert spans(run) == [(100, 525)]


# Prefetches that block


def test_a_layer_waits_for_the_prefetches_before_it() -> None:
    slow = machine(2, load_ns=300)
    lines = trace([token(0, (0,), (0,), next_gate=((), (0,))), token(1, (0,), (0,), next_gate=((), (1,)))], 2, 2)
    # Layer 0 reached 100: load - 400, prefetch of (1, 0) - 700; 450.  Layer 1 reached 550: 700, 750.
    # Layer 0 reached 850: there, the prefetch of (1, 1) - 1150; 900.  Layer 1 reached 1000: there.
    run = solve(lines, "next-gate", slots=4, hardware=slow)
    assert spans(run) == [(100, 400), (400, 700), (850, 1150)]
    assert waits(run) == [(100, 400), (550, 700)]
    assert run.metrics.decode_ns == 1050
    # Blocked, it computes at 1150.
    run = solve(lines, "next-gate", slots=4, hardware=slow, runtime=Runtime(prefetch_blocks=True))
    assert spans(run) == [(100, 400), (400, 700), (850, 1150)]
    assert waits(run) == [(100, 400), (550, 700), (1000, 1150)]
    assert run.metrics.decode_ns == 1200


def test_preloads_do_not_block() -> None:
    lines = trace(tokens(0, 1, 2, 3), 1, 6)
    run = solve(lines, "static.hindsight", slots=6, runtime=Runtime(prefetch_blocks=True))
    assert run.metrics.decode_ns == 850


def test_the_native_runtime_is_the_default() -> None:
    lines = trace(tokens(0, 1, 0, 2, 1), 1, 3)
    assert solve(lines, "on-demand.lru", 2, runtime=Runtime()).entries == solve(lines, "on-demand.lru", 2).entries


# Equal times


def at(run: Solved, time: int) -> list[type[Event]]:
    """What kinds of events there were at a time, in order."""
    return [type(event) for event, _ in run.entries if event.time == time]


def test_what_arrives_as_a_layer_is_reached_is_there() -> None:
    lines = trace([token(0, (0,), (1,), next_gate=((), (1,)))], 2, 2)
    # Loads of 150: (0, 0) 100 - 250, (1, 1) 250 - 400; computed 300, layer 1 reached 400.
    run = solve(lines, "next-gate", slots=4, hardware=machine(2, load_ns=150))
    assert at(run, 400) == [BatchArrived, LayerReached]
    assert run.counts == (1, 0, 1, 2)


def test_what_arrives_is_known_before_what_the_cpu_computed() -> None:
    # The preload of 0 arrives at 200.  Reached 100, the CPU computes 1 until 200.
    run = solve(split(), "fiddler", slots=2, hardware=machine(1, host_ns=100), runtime=NATIVE)
    assert at(run, 200) == [BatchArrived, HostComputed]
    # So 0 computes without another wait, and the result of 1 is there when it is through.
    assert waits(run)[:1] == [(100, 200)]
    assert run.metrics.decode_ns == 250 + 100 + 100


def test_what_the_cpu_computed_is_known_before_what_the_gpu_computed() -> None:
    # 0 is fixed, so one slot is left for 1 and 2, which have four tokens and are copied one after the other.  3 has
    # two: less on the CPU, 200, than a load, 50 + 200.
    cells = ((1, 2), (1, 2), (1, 2), (1, 2), (0, 3), (0, 3))
    window = [token(position, cell) for position, cell in enumerate(cells)]
    lines = trace([*window, token(0, (0, 1), request=1)], 1, 4, top_k=2)
    slow_start = machine(1, latency_ns=50, host_ns=100)
    run = solve(lines, "fiddler.spec", slots=2, gamma=5, hardware=slow_start, runtime=NATIVE)
    # Preload 50 - 250.  Drafted 200, reached 300: 0 computes - 350 and makes room for nobody.
    # The copy of 1: 350 - 550, computed 600.  The CPU begins at 400, after a round trip of 100, and is through at 600.
    assert at(run, 600)[:2] == [HostComputed, Computed]
    assert [keys[0] for keys, _, _ in run.transfers[:3]] == [(0, 0), (0, 1), (0, 2)]
    # The copy of 2: 650 - 850, computed 900.
    assert spans(run)[1:3] == [(350, 550), (650, 850)]
