"""The rows of foresight, each on a run that can be followed on paper.

As in `tests.sim.solved.test_basics`: attention and router of a layer take 100 ns, an expert 50, a load 200 on the link
with no latency, a drafted token 40.
"""

from __future__ import annotations

from itertools import count

import pytest

from sim.replay import replay
from spmoe.policy.foresight.deadline import ForesightAhead
from spmoe.policy.foresight.next_use import LatestExpected, NextUses
from spmoe.policy.parts.horizon import NextLayer
from spmoe.policy.parts.pace import Pace
from spmoe.policy.parts.predictor import Predictor
from spmoe.policy.parts.scope import Scope
from spmoe.state.events import DraftPredicted, LayerReached, StepBegun, TokenDrafted
from spmoe.state.keys import Shape
from spmoe.trace.schema import ONE
from tests.conformance.cases import make_trace
from tests.policy.caches import bound
from tests.sim.paper import machine, milliseconds, solve, token, trace, waits

PACE = Pace(load_bytes=1, latency_ns=0, transfer_ns=100, draft_ns=400, layer_ns=200, least_layer_ns=99)


@pytest.mark.parametrize("policy", ["spmoe.foresight.history", "spmoe.foresight.eviction"])
def test_who_rests_longest_leaves(policy: str) -> None:
    lines = trace([token(0, (0,), (0,)), token(1, (1,), (1,)), token(2, (0,), (1,))], 2, 2)
    run = solve(lines, policy, slots=3)
    # Misses: there at 300, computed at 350; then 650 and 700, 1000 and 1050.  (1, 1) at 1150 finds all slots taken.
    # (0, 0) and (1, 0) were used once and left out once, so they rest as long once they may come; but (0, 0) may come
    # in visit 4, (1, 0) in visit 5 at the earliest.  (0, 1) was used just now and may come in visit 4 too.
    assert run.evicted == [(1, 0)]
    # Token 2 hits twice: 1500 and 1550, 1650 and 1700.
    assert run.counts == (2, 0, 4, 4)
    assert run.metrics.decode_ns == 1700
    assert solve(lines, "on-demand.lru", slots=3).counts == (1, 0, 5, 5)


def test_of_a_layer_who_was_used_less_leaves() -> None:
    lines = trace([token(0, (0,)), token(1, (0,)), token(2, (1,)), token(3, (2,)), token(4, (0,))], 1, 3)
    run = solve(lines, "spmoe.foresight.history", slots=2)
    # Expert 0 was used twice, 1 once but last: its fast memory says 0.34 and 0.36, the slow one 0.38 and 0.34.
    assert run.evicted == [(0, 1)]
    assert run.counts == (2, 0, 3, 3)
    # LRU lets 0 go, and 1 for it.
    assert solve(lines, "on-demand.lru", slots=2).counts == (1, 0, 4, 4)


@pytest.mark.parametrize("named", [0, 1])
def test_who_is_forecast_stays(named: int) -> None:
    lines = [
        token(0, (0,), (0,)),
        token(1, (0,), (1,)),
        token(2, (0,), (0,), draft=((0,), (named,))),
        token(3, (1,), (0,)),
    ]
    run = solve(trace(lines, 2, 2), "spmoe.foresight.eviction", slots=3, gamma=1)
    # Step 1 (tokens 0 and 1) loads (0, 0), (1, 0) and (1, 1), which are as likely to come again.  In step 2 (tokens 2
    # and 3) layer 0 needs both its experts: for (0, 1) one of layer 1 has to go, and the draft says which.
    assert run.evicted[0] == (1, 1 - named)
    assert run.counts == ((2, 0, 4, 4) if named == 0 else (1, 0, 5, 5))


def test_what_has_computed_may_leave_while_its_layer_loads() -> None:
    lines = trace([token(0, (0,), (0, 1, 2)), token(1, (0, 1, 2), (0, 1, 2))], 2, 3, top_k=3)
    run = solve(lines, "spmoe.foresight.history", slots=4, depth=1, hardware=milliseconds(2))
    # Token 1 needs three experts of layer 0.  (0, 0) is there; for (0, 1) one of layer 1 has to go.  When it arrives
    # (0, 0) has computed and comes in visit 4 again, two of layer 1 in visit 3: it makes room for (0, 2).
    assert run.evicted[:2] == [(1, 0), (0, 0)]
    assert [plan.waves for plan in run.plans] == [True] * 4


def test_what_is_likely_enough_is_fetched_while_the_draft_runs() -> None:
    drafted = [token(n, (0,), (1,), draft=((0,), (1,))) for n in range(3)]
    slow = machine(2, draft_ns=500)
    run = solve(trace(drafted, 2, 3), "spmoe.foresight.prefetch", slots=6, gamma=2, hardware=slow)
    # The draft tells of its first token at 500 (both layers at once), and the verifier begins at 1000: two loads are
    # over by then, one behind the other.  It finds all that it needs.  Of the others, that are not named, each has a
    # chance of less than 200 / 350.
    assert run.transfers == [([(0, 0)], 500, 700), ([(1, 1)], 700, 900)]
    assert run.counts == (2, 0, 0, 2)
    assert run.metrics.decode_ns == 1000 + 2 * 150
    late = solve(trace(drafted, 2, 3), "spmoe.foresight.eviction", slots=6, gamma=2, hardware=slow)
    assert late.metrics.decode_ns == run.metrics.decode_ns + 2 * 200


def built(scope: Scope) -> Predictor:
    return bound(ForesightAhead().build(scope, None))


def wants_now(predictor: Predictor) -> list[int]:
    """What an idle link should fetch."""
    predictor.look_ahead(0, 0, 0)
    return list(predictor.next(1))


def test_a_prefetch_has_to_be_worth_the_links_time() -> None:
    predictor = built(Scope(4, 4, 1, 0, NextLayer(), PACE))
    order = LatestExpected().order((0,) * 16, predictor, 4)
    predictor.step_begun(StepBegun(0, 1), 1)
    tokens = count()

    def fetched(certainty: int) -> list[int]:
        named = ((), (), ((2, certainty),), ((1, certainty),))
        predictor.draft_predicted(DraftPredicted(0, next(tokens), 0, named))
        return wants_now(predictor)

    # A load takes 100 and a layer 99: little more than an even chance is enough, the earliest layer first.  What the
    # draft says counts as the middle of one of 16 bins: 15/32 is not enough, 17/32 is.
    assert fetched(ONE * 15 // 32) == []
    assert fetched(ONE // 8) == [2 * 4 + 2]  # With what was said before 1 - 17/32 * 7/8.
    # Nothing more is wanted while that is on its way.
    assert not predictor.look_ahead(0, 1, 0) and not predictor.look_ahead(0, 0, 1)
    order.touch([2 * 4 + 2])
    assert fetched(0) == [3 * 4 + 1]
    order.touch([3 * 4 + 1])
    assert fetched(0) == []


def test_a_prefetch_displaces_nobody_who_is_expected_sooner() -> None:
    predictor = built(Scope(2, 2, 1, 0, NextLayer(), PACE))
    order = LatestExpected().order((0,) * 4, predictor, 2)
    predictor.step_begun(StepBegun(0, 1), 1)
    order.touch([0, 2, 3])
    predictor.draft_predicted(DraftPredicted(0, 0, 0, (((0, ONE),), ((0, ONE),))))
    assert wants_now(predictor) == []  # Key 1 has a chance of 1/4.
    # Key 0 is needed a layer before 2, as surely; 3, not named, has a chance of 1/4 and leaves.
    assert order.evict(0, {0}, (), 2, demand=False) is None
    assert order.evict(0, {0, 2}, (), 1, demand=False) is None
    assert order.evict(0, {0, 3}, (), 2, demand=False) == 3
    assert order.evict(0, {0}, (), 2, demand=True) == 0


@pytest.mark.parametrize(("least_layer_ns", "wanted"), [(300, []), (301, [4])])
def test_where_loads_are_short_a_small_chance_is_enough(least_layer_ns: int, wanted: list[int]) -> None:
    # How long a layer takes with all tokens of the longest window does not count: most windows are shorter.
    pace = PACE._replace(layer_ns=1000, least_layer_ns=least_layer_ns)
    predictor = built(Scope(2, 4, 1, 0, NextLayer(), pace))
    LatestExpected().order((0,) * 8, predictor, 4)
    predictor.step_begun(StepBegun(0, 0), 0)
    predictor.layer_reached(LayerReached(0, 0, (0,), (1,)))
    # Each has a chance of 1/4: three layers' worth of time is lost to a load for one that is saved.
    assert wants_now(predictor) == wanted


@pytest.mark.parametrize(("least_layer_ns", "together"), [(99, 1), (100, 2)])
def test_where_loads_are_short_two_are_on_their_way_together(least_layer_ns: int, together: int) -> None:
    pace = PACE._replace(least_layer_ns=least_layer_ns)
    predictor = built(Scope(1, 4, 1, 0, NextLayer(), pace))
    order = LatestExpected().order((0,) * 4, predictor, 4)
    predictor.step_begun(StepBegun(0, 1), 1)
    predictor.draft_predicted(DraftPredicted(0, 0, 0, (tuple((expert, ONE) for expert in range(3)),)))
    submitted = 0
    while predictor.look_ahead(0, 0, submitted):
        order.touch(predictor.next(1))
        submitted += 1
    assert submitted == together


@pytest.mark.parametrize("streams", [True, False])
def test_where_a_whole_layer_comes_in_time_whoever_is_reached_later_may_leave(streams: bool) -> None:
    pace = PACE._replace(layer_ns=200, least_layer_ns=200 if streams else 199)
    predictor = built(Scope(3, 2, 1, 0, NextLayer(), pace))
    order = LatestExpected().order((0,) * 6, predictor, 2)
    for _ in range(8):
        predictor.step_begun(StepBegun(0, 0), 0)
        for layer, expert in enumerate((0, 1, 0)):
            predictor.layer_reached(LayerReached(0, layer, (expert,), (1,)))
    predictor.step_begun(StepBegun(0, 0), 0)
    predictor.layer_reached(LayerReached(0, 0, (0,), (1,)))

    assert wants_now(predictor) == [3]

    def leaves(resident: int, key: int) -> bool:
        order.touch([resident])
        return order.evict(0, {resident}, (), key, demand=False) == resident

    # Key 2, of the next layer, was never used; key 0, of the layer before it, is expected with the next pass and key 4,
    # of the layer behind it, in this one.  Both can be back in time.
    assert (leaves(0, 2), leaves(4, 2)) == (streams, streams)
    # Not who is reached earlier, and in a layer only who is less likely.
    assert not leaves(3, 4) and not leaves(3, 2)
    assert leaves(2, 3)


@pytest.mark.parametrize(("agree", "decode_ns"), [(True, 1040), (False, 1080)])
def test_while_the_link_is_awaited_the_draft_goes_on(agree: bool, decode_ns: int) -> None:
    lines = [token(n, (0,), (0,), draft=((0,), (0,)), agree=agree or n != 1) for n in range(4)]
    run = solve(trace(lines, 2, 2), "spmoe.foresight.run-ahead", slots=4, gamma=1)
    # Step 1 drafts until 40.  Layer 0 at 140 waits for a load until 340: meanwhile the draft reads the window's last
    # token, 140 - 180, and the next window's two, until 260.  That is all it may.  Layers: 390, 490 - 690, 740.
    read = [(event.token, event.time) for event, _ in run.entries if isinstance(event, TokenDrafted)]
    assert read[:4] == [(0, 40), (1, 180), (2, 220), (3, 260)]
    # Where the draft went on with the target's token, step 2 has nothing to draft: layers at 890 and 1040.
    assert read[4:] == ([] if agree else [(0, 780)])
    assert waits(run) == [(140, 340), (490, 690)]
    assert run.metrics.decode_ns == decode_ns
    # The verifier computes what it would have, and waits as long: four layers of 100, four experts of 50.
    assert (run.metrics.compute_ns, run.metrics.stall_ns) == (600, 400)
    assert solve(trace(lines, 2, 2), "spmoe.foresight.eviction", slots=4, gamma=1).metrics.decode_ns == 1080


def test_the_draft_does_not_go_on_where_it_would_delay_what_arrives() -> None:
    lines = [token(n, (0,), (0,), draft=((0,), (0,))) for n in range(4)]
    run = solve(trace(lines, 2, 2), "spmoe.foresight.run-ahead", slots=4, gamma=1, hardware=machine(2, draft_ns=201))
    assert [event.token for event, _ in run.entries if isinstance(event, TokenDrafted)] == [0, 0]


def test_what_is_drafted_past_the_window_says_who_comes_back() -> None:
    predictor = NextUses(Shape(1, 4, 1))

    def said(at: int, token: int, expert: int, chance: int) -> None:
        predictor.draft_predicted(DraftPredicted(at, token, 0, (((expert, ONE),),)))
        predictor.token_drafted(TokenDrafted(at, token, chance), chance)

    # A window of two: of its first token's proposal and of its own, which is the first past the window, the draft is
    # half sure.  So what it reads there counts for a quarter.
    predictor.step_begun(StepBegun(0, 1), 1)
    said(5, 0, 0, ONE // 2)
    predictor.window_closed(1)
    predictor.layer_reached(LayerReached(10, 0, (0,), (2,)))
    before = predictor.soonness.copy()
    said(15, 1, 0, ONE // 2)
    assert (predictor.soonness == before).all()  # It has read the window's last token: of that the layer has told.
    said(20, 2, 3, ONE)
    after = predictor.soonness.copy()
    assert after[3] > before[3] and (after[:3] <= before[:3]).all()
    predictor.step_ended(0)  # Dropped.
    assert (predictor.soonness == before).all()


def test_what_was_drafted_past_the_window_is_of_the_next_one_when_it_stands() -> None:
    predictor = NextUses(Shape(1, 4, 1))
    predictor.step_begun(StepBegun(0, 0), 0)
    predictor.window_closed(0)
    predictor.layer_reached(LayerReached(10, 0, (0,), (1,)))
    for read, expert in enumerate((0, 3)):
        predictor.draft_predicted(DraftPredicted(20, read, 0, (((expert, ONE),),)))
        predictor.token_drafted(TokenDrafted(20, read, ONE), ONE // 2)
    past = predictor.soonness.copy()
    predictor.step_ended(1)
    predictor.step_begun(StepBegun(30, 1), 1)
    assert predictor.soonness[3] > past[3]  # Now it is of this pass, and certain to be verified.
    sure = predictor.soonness.copy()
    predictor.draft_predicted(DraftPredicted(40, 0, 0, (((3, ONE),),)))  # As the draft said already.
    assert (predictor.soonness == sure).all()


@pytest.mark.parametrize("cpu_experts", [True, False])
def test_at_most_no_token_is_plain_decoding(cpu_experts: bool) -> None:
    """A longest draft of 0 leaves nothing to choose."""
    lines = make_trace(3, 3, 6, 2, [12, 7, 9], agreement=0.8, empty=0)
    given, chosen = (
        replay(lines, "spmoe.foresight", slots=9, cpu_experts=cpu_experts, **{name: 0}).results[0]
        for name in ("gamma", "gamma_max")
    )
    assert chosen.metrics == given.metrics
    assert (given.lengths, chosen.lengths) == (None, (0,) * 28)
