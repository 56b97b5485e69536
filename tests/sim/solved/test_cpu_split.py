"""Misses between link and CPU, each on a run that can be followed on paper, and what has to hold of all of them.

As in `tests.sim.solved.test_basics`: attention and router of a layer take 100 ns, an expert 50, a load 200 on the link
with no latency, a drafted token 40; and the CPU takes 60 for each token of an expert.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim import replay
from spmoe.machine.hardware import load_hardware
from spmoe.state.events import LayerReached, LinkAwaited, TokenDrafted
from tests.sim.machines import mixtral_requests
from tests.sim.paper import machine, solve, token, trace, waits

HOST_NS = 60


def test_link_and_cpu_share_a_layer() -> None:
    lines = trace([token(0, (0, 1, 2, 3))], 1, 4, top_k=4)
    run = solve(lines, "spmoe.foresight.split", slots=4, hardware=machine(1, host_ns=HOST_NS))
    # An idle link fetches in the background, from the start: expert 0, as likely as any.  At 100 it takes 100 yet; the
    # others would be there 300, 500 and 700 from now, and take the CPU 60 each.  With all three on the CPU the layer
    # needs 180, with two of them 300, with all four 240.
    assert run.transfers[0] == ([(0, 0)], 0, 200)
    assert [(plan.late, plan.misses, plan.host) for plan in run.plans] == [((0,), (1, 2, 3), (1, 2, 3))]
    # 0 arrives at 200 and computes until 250; the CPU is through at 280.
    assert waits(run) == [(100, 160), (160, 200), (250, 280)]
    assert run.metrics.decode_ns == 280


def test_what_the_cpu_computes_is_fetched_meanwhile_for_the_next_time() -> None:
    lines = trace([token(0, (0,)), token(1, (1,)), token(2, (0,)), token(3, (1,))], 1, 2)
    run = solve(lines, "spmoe.foresight.split", slots=2, hardware=machine(1, host_ns=HOST_NS))
    # Expert 0 would come at 200, 100 after its layer is reached: the CPU has it at 160.  When expert 1 is needed, at
    # 260, nothing of it is on its way; it goes to the CPU until 320 and over the link until 460.  Then both are there.
    assert run.transfers == [([(0, 0)], 0, 200), ([(0, 1)], 260, 460)]
    assert [plan.host for plan in run.plans] == [(0,), (1,), (), ()]
    assert run.metrics.decode_ns == 160 + 160 + 2 * 150
    assert run.metrics.host_computed == 2


def test_the_cpu_helps_with_those_that_are_there() -> None:
    lines = trace([token(n, (0, 1, 2, 3)) for n in range(4)], 1, 4, top_k=4)
    run = solve(lines, "spmoe.foresight.split", slots=4, hardware=machine(1, host_ns=HOST_NS))
    # All four are there for the fourth token.  They would take the GPU 200; with two on the CPU the layer needs 120.
    last = run.plans[-1]
    assert (last.hits, last.late, last.misses, last.host) == ((0, 1, 2, 3), (), (), (0, 1))
    reached = [event.time for event, _ in run.entries if isinstance(event, LayerReached)][-1]
    assert run.entries[-1][0].time == reached + 120


def test_while_the_cpu_is_awaited_the_draft_goes_on() -> None:
    lines = [token(n, (0,), (1,), draft=((0,), (1,))) for n in range(4)]
    slow = machine(2, host_ns=HOST_NS, load_ns=2000)
    run = solve(trace(lines, 2, 2), "spmoe.foresight", slots=4, gamma=1, hardware=slow)
    # Layer 0 is reached at 140, and the CPU takes two tokens' 120.  Meanwhile the draft reads the window's last token
    # and the next window's two, so that the second step drafts nothing: four layers of 100 + 120.
    drafted = [event.time for event, _ in run.entries if isinstance(event, TokenDrafted)]
    assert drafted == [40, 180, 220, 260]
    assert any(isinstance(event, LinkAwaited) for event, _ in run.entries)
    assert run.metrics.decode_ns == 40 + 4 * 220


def test_without_a_cpu_it_is_the_row_that_fetches() -> None:
    lines = trace([token(n, (n % 2,), (0,), draft=((n % 2,), (0,))) for n in range(6)], 2, 2)
    alone, fetching = (
        solve(lines, policy, slots=3, gamma=2) for policy in ("spmoe.foresight.split", "spmoe.foresight.prefetch")
    )
    assert alone.entries == fetching.entries


@pytest.mark.parametrize("slots", [32, 96, 192])
@pytest.mark.parametrize("slower", [1, 4, 16])
def test_the_link_is_never_idle_and_a_cpu_does_no_harm(slots: int, slower: int) -> None:
    hardware = load_hardware("rtx-4090")
    assert hardware.cpu is not None
    cpu = replace(
        hardware.cpu, bandwidth=hardware.cpu.bandwidth // slower, gflops=max(1, hardware.cpu.gflops // slower)
    )
    found = {}
    for cpu_experts in (True, False):
        (result,) = replay(
            mixtral_requests(1),
            "spmoe.foresight.split",
            replace(hardware, cpu=cpu),
            bits=16,
            slots=slots,
            cpu_experts=cpu_experts,
        ).results
        found[cpu_experts] = result
    with_cpu, without = found[True].metrics, found[False].metrics
    assert (found[True].fetch_only, found[False].fetch_only) == (False, True)
    assert without.host_computed == 0 < with_cpu.host_computed
    assert with_cpu.link_utilisation is not None and with_cpu.link_utilisation > 0.95
    # A very slow one is hardly used.
    assert with_cpu.decode_ns < without.decode_ns * (1.03 if slower == 16 else 1)
