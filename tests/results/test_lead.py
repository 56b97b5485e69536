"""Lead times: from a forecast's report until its layer is reached, in runs and in their logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from spmoe.errors import InputError
from spmoe.results.lead import LayerLead, Lead, LeadFold, LeadTimes, read_lead
from spmoe.state.commands import Command, Load, Purpose, Speculate, Submit
from spmoe.state.events import (
    BatchArrived,
    DraftPredicted,
    Event,
    GatePredicted,
    LayerDone,
    LayerReached,
    PrefillBegun,
    PrefillEnded,
    StepBegun,
    StepEnded,
    TokenDrafted,
)
from tests.paths import DOCS

SOME = ((0, 9),)


def watched(*entries: Event | tuple[Event, tuple[Command, ...]]) -> LeadTimes:
    fold = LeadFold()
    for entry in entries:
        # Events are tuples as well.
        event, commands = entry if type(entry) is tuple else (entry, ())
        fold.observe(event, commands)  # type: ignore[arg-type]
    return fold.result()


STEP: tuple[Event | tuple[Event, tuple[Command, ...]], ...] = (
    (StepBegun(0, 2), (Speculate(2, 2, 2),)),
    DraftPredicted(100, 0, 0, (SOME, SOME)),
    TokenDrafted(110, 0, None),
    DraftPredicted(200, 1, 0, (SOME, ())),  # for layer 1 nothing
    TokenDrafted(210, 1, None),
    LayerReached(300, 0, (0,), (3,)),
    GatePredicted(300, 1, (SOME, (), ())),
    LayerDone(450, 0, ((300, 400),)),
    LayerReached(500, 1, (0,), (3,)),
    LayerDone(520, 1, ((450, 480), (500, 510))),  # attention waited, then the experts
    StepEnded(520, 2),
)


def test_a_step() -> None:
    found = watched(*STEP)
    assert found.sources == {
        "draft": {
            0: LayerLead((Lead(1, 200, 0), Lead(1, 100, 0)), last=Lead(1, 100, 0)),
            # Waits since 100, up to 500: 100 and 30.
            1: LayerLead((Lead(1, 400, 130),), last=Lead(1, 400, 130)),
        },
        "next_gate": {1: LayerLead((Lead(1, 200, 130),), last=Lead(1, 200, 130))},
    }
    assert (found.steps, found.asked, found.load_ns) == (1, 1, None)
    every = found.sources["draft"][0].every
    assert (every.reports, every.mean_ns, every.busy_ns) == (2, 150, 150)
    assert found.sources["next_gate"][1].every.busy_ns == 70


def test_a_wait_under_way_as_the_gate_speaks_counts_from_then_on() -> None:
    found = watched(
        (StepBegun(0, 0), (Speculate(0, 0, 1),)),
        LayerReached(100, 0, (0,), (1,)),
        GatePredicted(150, 1, (SOME,)),
        LayerDone(300, 0, ((0, 50), (100, 250))),
        LayerReached(400, 1, (0,), (1,)),
        LayerDone(500, 1, ()),
    )
    assert found.sources == {"next_gate": {1: LayerLead((Lead(1, 250, 100),), last=Lead(1, 250, 100))}}
    assert (found.steps, found.asked) == (0, 0)


def test_prompts_do_not_count() -> None:
    prompt = (
        PrefillBegun(0, 5),
        LayerReached(10, 0, (0,), (5,)),
        GatePredicted(10, 1, (SOME,)),
        LayerDone(20, 0, ()),
        LayerReached(30, 1, (0,), (5,)),
        LayerDone(40, 1, ()),
        PrefillEnded(40),
    )
    assert watched(*prompt) == LeadTimes({}, 0, 0, None)


def test_steps_without_forecasts_are_told() -> None:
    later = tuple(event._replace(time=1000) for event in (StepBegun(0, 2), StepEnded(0, 0)))
    found = watched(*STEP, (later[0], (Speculate(2, 0, 8),)), later[1])
    assert (found.steps, found.asked) == (2, 1)


def test_the_time_of_a_load_is_that_of_the_link() -> None:
    pair = Submit(0, Purpose.PREFETCH, (Load(0, 0, None), Load(1, 1, None)))
    found = watched(
        (StepBegun(0, 0), (pair, Speculate(0, 0, 1))),
        (BatchArrived(90, 0, 10, 70), (Submit(1, Purpose.DEMAND, (Load(2, 2, None),)),)),
        BatchArrived(200, 1, 90, 120),
    )
    assert found.load_ns == (60 + 30) / 3


PAGE = (DOCS / "contract.md").read_text(encoding="utf-8")
LOG = PAGE.partition("```json\n")[2].partition("```")[0]


def test_the_log_on_the_page_of_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(LOG)
    # Reported at 103,612, layer 0 reached at 307,239; three loads of 400,000.
    only = Lead(1, 307_239 - 103_612, 0)
    assert read_lead(path) == LeadTimes({"draft": {0: LayerLead((only,), last=only)}}, 1, 1, 400_000)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('{"end":18}\n', "", "a.log: expected an end line"),
        ('"time":103612', '"time":1e99', "a.log:5: field time: expected whole nanoseconds, got 1e.99"),
        ('"started":115612', '"started":-1e999', "a.log:11: field started: expected whole nanoseconds, got -inf"),
        ("[[307239,515612],", '[["x",515612],', "a.log:13: "),
        ("[[307239,515612],", "[[NaN,515612],", "a.log:13: expected finite numbers, got NaN"),
        ("[[307239,515612],", "[[],", "a.log:13: "),
        ('"slot":1', '"slot":0', "a.log:9: a fresh scheduler says"),
    ],
)
def test_a_damaged_log_is_refused(tmp_path: Path, before: str, after: str, said: str) -> None:
    path = tmp_path / "a.log"
    assert before in LOG
    path.write_text(LOG.replace(before, after, 1))
    with pytest.raises(InputError, match=said) as refused:
        read_lead(path)
    assert "\n" not in str(refused.value)
