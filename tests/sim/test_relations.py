"""What has to hold between policies, whatever the trace and the machine."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sim import replay
from sim.prepared import Replay
from spmoe.policy.parts.miss_action import Split
from spmoe.policy.registry import RECIPES
from spmoe.results.metrics import Metrics
from tests.conformance.cases import Case, cases, make_trace
from tests.conformance.drivers import with_room
from tests.sim.machines import mixtral_requests, rtx_4090
from tests.soak import times

QUICK = settings(max_examples=times(30, soaked=60), deadline=None)
BITS = st.sampled_from([4.25, 8, 16])
SPECULATIVE = ("spmoe.paper", "spmoe.per-layer")
CACHES = ("on-demand.lru", "on-demand.lru-per-layer", "next-gate", *SPECULATIVE)
"""Policies that keep what they load and use all their slots."""


def run(case: Case, bits: float, policies: str | list[str] = "all", **changes: int) -> Replay:
    options = {"slots": case.slots, "gamma": case.gamma, "cutoff": case.cutoff, "bandwidth": case.bandwidth} | changes
    machine = rtx_4090(options.pop("bandwidth"))
    return replay(case.trace, policies, machine, bits=bits, **options)  # type: ignore[arg-type]


def metrics(found: Replay) -> dict[str, Metrics]:
    return {result.recipe.name: result.metrics for result in found.results}


def check_all(found: Replay, tokens: int) -> None:
    """The invariants of every run, and of those with the same windows."""
    for result in found.results:
        recipe, one, name = result.recipe, result.metrics, result.recipe.name
        if result.fetch_only and recipe.lossless:
            assert result.vs_bound is None or result.vs_bound >= 1, name
            assert one.host_computed == one.host_busy_ns == 0, name
        assert one.tokens == tokens, name
        assert one.hits + one.late + one.misses == one.needs, name
        # Where a layer is split, the CPU may take an expert that is resident, too.
        from_cpu = one.needs if isinstance(recipe.miss, Split) else one.late + one.misses
        assert one.host_computed <= from_cpu, name
        gamma = found.setting.gamma
        if recipe.speculation.gamma(gamma) == gamma:
            assert one.steps == found.bound.steps, name
            # The same windows have the same needs, however they are met.
            assert one.needs == found.bound.needs, name
            if result.fetch_only:
                assert one.loads >= found.bound.loads, name
                assert one.compute_ns == found.bound.compute_ns, name
        assert one.prefetched_used <= one.prefetched, name
        assert one.cold_needs_prefetched <= one.cold_needs <= one.needs, name
        assert one.stall_ns + one.compute_ns <= one.decode_ns, name
        assert one.link_busy_ns <= one.decode_ns, name


LOSSLESS = [name for name, recipe in RECIPES.items() if recipe.lossless]


@settings(max_examples=times(100, soaked=400), deadline=None)
@given(cases(), BITS, st.sampled_from(LOSSLESS), st.booleans())
def test_nothing_beats_the_bound_and_all_do_the_same_work(
    case: Case, bits: float, policy: str, cpu_experts: bool
) -> None:
    assume(cpu_experts or "cpu" not in RECIPES[policy].needs)
    roomy = with_room(RECIPES[policy], case)
    assume(roomy.slots <= case.layers * case.experts)
    assume(len({line.request for line in case.trace}) > 1 or "popularity" not in RECIPES[policy].needs)
    found = run(roomy, bits, policy, cpu_experts=cpu_experts)
    check_all(found, case.trace.header.tokens)


@pytest.mark.parametrize(("slots", "gamma", "bits", "bandwidth"), [(64, 0, 16, 24), (128, 4, 4.25, 24), (200, 2, 8, 4)])
def test_the_same_on_the_mixtral_trace(slots: int, gamma: int, bits: float, bandwidth: int) -> None:
    trace = mixtral_requests(2, longest=times(12, soaked=40))
    found = replay(trace, "all", rtx_4090(bandwidth * 10**9), bits=bits, slots=slots, gamma=gamma)
    check_all(found, trace.header.tokens)
    # Not laws, but what the policies are for.  (An oracle that loads as early as it can may lose on a contrived trace.)
    tpot = {one.recipe.name: one.metrics.decode_ns for one in found.results if one.fetch_only}
    assert tpot["clairvoyant"] < min(time for name, time in tpot.items() if name != "clairvoyant")
    if gamma:
        assert tpot["spmoe.paper"] < tpot["on-demand.lru"]


@QUICK
@given(cases(), BITS)
def test_a_faster_link_never_slows_on_demand_down(case: Case, bits: float) -> None:
    policies = ["on-demand.lru"]
    slow = metrics(run(case, bits, policies))["on-demand.lru"]
    fast = metrics(run(case, bits, policies, bandwidth=3 * case.bandwidth))["on-demand.lru"]
    # What LRU keeps follows from the routing alone.
    assert fast.loads == slow.loads
    assert fast.decode_ns <= slow.decode_ns


@QUICK
@given(cases(), BITS)
def test_without_layers_to_prefetch_sp_moe_loads_on_demand(case: Case, bits: float) -> None:
    names = {"spmoe.paper": "on-demand.lru"}
    if case.slots >= case.layers:
        names["spmoe.per-layer"] = "on-demand.lru-per-layer"
    found = run(case, bits, [*names, *names.values()], cutoff=0)
    widest = found.bound.widest
    for name, baseline in names.items():
        one, other = metrics(found)[name], metrics(found)[baseline]
        assert one.prefetched == 0
        room = case.slots if name == "spmoe.paper" else case.slots // case.layers
        if room >= widest:  # In waves, who leaves depends on which experts land together.
            assert (one.loads, one.hits, one.misses) == (other.loads, other.hits, other.misses)


@QUICK
@given(cases(), BITS)
def test_where_everything_fits_nothing_is_loaded_twice(case: Case, bits: float) -> None:
    keys = case.layers * case.experts
    found = metrics(run(case, bits, list(CACHES), slots=keys))
    assert all(one.loads <= keys for one in found.values())
    if case.cutoff == 0 or case.gamma == 0:
        assert found["on-demand.lru"].loads == found["spmoe.paper"].loads
    assert found["on-demand.lru"] == found["on-demand.lru-per-layer"]
    # Slots lie differently, so that different neighbours merge into one copy: times may differ, loads may not.
    assert found["spmoe.paper"].loads == found["spmoe.per-layer"].loads


@pytest.mark.parametrize("gamma", [0, 3])
def test_a_warm_cache_for_everything_makes_all_policies_equal(gamma: int) -> None:
    # The first request touches every expert; the second is timed by itself: its share of both runs' difference.
    warm = make_trace(5, 3, 4, 2, [40], prefills=False, agreement=0.7, empty=0)
    both = make_trace(5, 3, 4, 2, [40, 20], prefills=False, agreement=0.7, empty=0)
    machine = rtx_4090(10**10)
    second: dict[str, int] = {}
    names = list(CACHES)
    alone = metrics(replay(warm, names, machine, slots=12, gamma=gamma))
    for name, one in metrics(replay(both, names, machine, slots=12, gamma=gamma)).items():
        assert one.loads == alone[name].loads == 12
        second[name] = one.decode_ns - alone[name].decode_ns
        assert one.stall_ns == alone[name].stall_ns
    assert len(set(second.values())) == 1


@QUICK
@given(cases(), BITS)
def test_without_drafts_sp_moe_is_plain_decoding(case: Case, bits: float) -> None:
    names = [name for name in CACHES if case.slots >= case.layers or "per-layer" not in name]
    found = run(case, bits, names, gamma=0)
    assert found.bound.stand_ins == 0
    for name, one in metrics(found).items():
        assert one.steps == one.tokens == case.trace.header.tokens, name
        assert one.decode_ns == one.compute_ns + one.stall_ns, name  # no time for drafts
    for name in set(SPECULATIVE) & set(metrics(found)):
        assert metrics(found)[name].prefetched == 0


@pytest.mark.parametrize("gamma", [0, 4])
def test_more_slots_never_make_lru_load_more_on_the_mixtral_trace(gamma: int) -> None:
    # LRU that touches residents before misses is no stack algorithm in general; on real routing more room helps.
    trace = mixtral_requests(2, longest=times(12, soaked=40))
    loads = [
        metrics(replay(trace, "on-demand.lru", slots=slots, gamma=gamma))["on-demand.lru"].loads
        for slots in (32, 96, 160, 224)
    ]
    assert loads == sorted(loads, reverse=True)
