"""Which experts of a layer go to the CPU: cases to follow on paper, and all choices beside the one taken."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spmoe.policy.parts.cpu_split import Late, Needed, Shares, split
from spmoe.policy.parts.pace import Pace
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.scheduler import Scheduler
from spmoe.state.commands import LayerPlan
from spmoe.state.events import HostComputed, LayerReached, LinkAwaited, RequestBegun, StepBegun

LINK = Pace(load_bytes=1, latency_ns=0, transfer_ns=100, draft_ns=0, layer_ns=0)
"""Loads of 100; the GPU computes in no time."""
GPU = LINK._replace(expert_ns=30)


def needed(*host_ns: int, first: int = 0) -> list[Needed]:
    return sorted(Needed(ns, expert) for expert, ns in enumerate(host_ns, first))


def test_link_and_cpu_finish_together() -> None:
    # All over the link: 400.  With the first n on the CPU: 300 and 60, 200 and 120, 100 and 180.
    assert split((), needed(60, 60, 60, 60), (), 0, LINK) == Shares((0, 1, 2), 100, 180)
    assert split((), needed(100, 100), (), 0, LINK) == Shares((0,), 100, 100)


def test_a_tie_is_fetched() -> None:
    assert split((), needed(100), (), 0, LINK) == Shares((), 100, 0)
    assert split((), needed(99), (), 0, LINK) == Shares((0,), 0, 99)


def test_what_the_link_has_to_do_yet_counts() -> None:
    # A CPU as slow as the link gets one of two when the link is free, and both when it is busy for another load.
    assert split((), needed(100, 100), (), 0, LINK).host == (0,)
    assert split((), needed(100, 100), (), 101, LINK) == Shares((0, 1), 0, 200)


def test_experts_of_few_tokens_go_to_the_cpu() -> None:
    assert split((), needed(300, 50, 60), (), 0, LINK) == Shares((1, 2), 100, 110)
    assert split(needed(300, 15, 10), (), (), 0, GPU) == Shares((2, 1), 30, 25)
    # Each expert of a prompt takes the CPU longer than several loads.
    assert split((), needed(500, 600, 700), (), 0, LINK).host == ()


def test_what_is_on_its_way_may_be_computed_by_the_cpu() -> None:
    late = [Late(-90, 40, 8), Late(-30, 40, 9)]
    # The one that arrives last first; it makes nothing else arrive earlier.
    assert split((), (), late, 90, LINK) == Shares((8,), 30, 40)
    # Both absent ones first, for they would come behind those.
    assert split((), needed(10, 10), late, 90, LINK) == Shares((0, 1, 8), 30, 60)
    assert split((), (), [Late(-90, 200, 8)], 90, LINK) == Shares((), 90, 0)


def test_the_cpu_computes_some_of_those_that_are_there() -> None:
    # The GPU alone takes 120, three of four 90, with one on the CPU meanwhile.
    assert split(needed(50, 50, 50, 50), (), (), 0, GPU) == Shares((0,), 90, 50)
    assert split(needed(120, 120, 120, 120), (), (), 0, GPU).host == ()
    # Handing over takes its time, too.
    assert split(needed(50, 50, 50, 50), (), (), 0, GPU._replace(handover_ns=45)) == Shares((0,), 90, 95)
    assert split(needed(50, 50, 50, 50), (), (), 0, GPU._replace(handover_ns=70)).host == ()


def test_who_arrives_computes_behind_those_that_are_there() -> None:
    # The load is over at 100, the GPU with the others at 120: so its expert is through at 150.  With one of those that
    # are there on the CPU that is 130, however few more there are.
    assert split(needed(60, 60, 60, 60, first=4), needed(500), (), 0, GPU) == Shares((4,), 130, 60)
    # The missing one on the CPU as well: 60, with two of those that are there.
    assert split(needed(20, 20, 20, 20, first=4), needed(20), (), 0, GPU) == Shares((0, 4, 5), 60, 60)


TIMES = st.integers(0, 500)


@given(
    st.lists(TIMES, max_size=4),
    st.lists(TIMES, max_size=4),
    st.lists(st.tuples(TIMES, TIMES), max_size=2),
    TIMES,
    st.builds(LINK._replace, transfer_ns=st.integers(1, 300), expert_ns=TIMES, handover_ns=TIMES),
)
def test_no_other_split_is_over_earlier(
    resident: list[int], missing: list[int], arriving: list[tuple[int, int]], waits: int, pace: Pace
) -> None:
    there, absent = needed(*resident, first=20), needed(*missing)
    late = sorted(Late(-arrives, ns, 10 + number) for number, (arrives, ns) in enumerate(arriving))
    free_ns = max([waits, *[arrives for arrives, _ in arriving]])
    found = split(there, absent, late, free_ns, pace)
    times = {one.key: one.host_ns for one in (*there, *absent, *late)}

    def through(on_cpu: tuple[int, ...]) -> tuple[int, int]:
        left = [-one.minus_arrives_ns for one in reversed(late) if one.key not in on_cpu]
        fetched = sum(one.key not in on_cpu for one in absent)
        left += [free_ns + count * pace.transfer_ns for count in range(1, fetched + 1)]
        gpu = pace.expert_ns * sum(one.key not in on_cpu for one in there)
        for arrives in left:
            gpu = max(gpu, arrives) + pace.expert_ns
        return gpu, pace.handover_ns + sum(times[expert] for expert in on_cpu) if on_cpu else 0

    assert (found.gpu_ns, found.host_ns) == through(found.host)
    sets = [chosen for count in range(len(times) + 1) for chosen in combinations(times, count)]
    if late:  # Those that arrive last, even where others take the CPU less.
        sets = [(), tuple(times)]
    assert found.over_ns <= min(max(through(chosen)) for chosen in sets)


PACE = Pace(load_bytes=1, latency_ns=0, transfer_ns=100, draft_ns=20, layer_ns=80, host_ns=40, host_token_ns=20)


def scheduler(pace: Pace = PACE, policy: str = "spmoe.foresight.split", gamma: int = 0) -> Scheduler:
    """Of one layer with eight experts and four slots."""
    config = SchedulerConfig(
        recipe=policy, layers=1, experts=8, top_k=2, slots=4, gamma=gamma, cutoff=0, pace=pace, depth=2
    )
    return Scheduler(config)


def reach(one: Scheduler, time: int, tokens: tuple[int, ...]) -> LayerPlan:
    plan = one.handle(LayerReached(time, 0, tuple(range(8 - len(tokens), 8)), tokens))[-1]
    assert isinstance(plan, LayerPlan)
    return plan


def test_an_expert_takes_the_cpu_longer_the_more_tokens_it_has() -> None:
    assert [PACE.host_expert_ns(tokens) for tokens in (1, 2, 3, 5)] == [40, 40, 60, 100]
    one = scheduler()
    one.handle(RequestBegun(0, 0))
    one.handle(StepBegun(0, 0))
    # The link fetches somebody in the background, at 50 for 50 more.  Experts 5, 6 and 7 take the CPU 100, 40 and 60.
    # With 6 and 7 on the CPU the layer needs 150, until 5 is there; with all three 200, with 6 alone 250.
    assert one.residency.in_flight == {0: 0}
    assert reach(one, 50, (5, 2, 3)).host == (6, 7)


def test_without_a_cpu_all_are_fetched() -> None:
    one = scheduler(PACE._replace(host_ns=0, host_token_ns=0))
    one.handle(RequestBegun(0, 0))
    one.handle(StepBegun(0, 0))
    assert reach(one, 50, (1, 1, 1)).host == ()


@pytest.mark.parametrize(("time", "granted"), [(60, True), (61, False)])
def test_the_draft_goes_on_while_the_cpu_computes(time: int, granted: bool) -> None:
    one = scheduler(policy="spmoe.foresight", gamma=1)
    one.handle(RequestBegun(0, 0))
    one.handle(StepBegun(0, 0))  # No token may be drafted, but past the window one may go on.
    plan = reach(one, 0, (1, 1))
    assert plan.host == (6, 7)
    # The CPU is through at 80: a piece of 20 may begin at 60, whatever arrives for later at 100.
    one.handle(HostComputed(40, 0, 6, 0, 40))
    assert bool(one.handle(LinkAwaited(time, 0))) is granted
