"""Runs that follow a trace: in virtual time they decide what the simulator decides on it, byte for byte."""

from __future__ import annotations

import dataclasses
from collections import Counter
from io import StringIO

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

from engine.profiling.random_models import BlankPair  # noqa: E402
from engine.profiling.trace_runner import Bench  # noqa: E402
from sim.runner import Runner  # noqa: E402
from spmoe.machine.hardware import Hardware, load_hardware  # noqa: E402
from spmoe.policy.parts.runtime import NATIVE  # noqa: E402
from spmoe.policy.recipe import Recipe  # noqa: E402
from spmoe.policy.registry import RECIPES, recipe  # noqa: E402
from spmoe.results.metrics_fold import MetricsFold  # noqa: E402
from spmoe.run.options import RunOptions  # noqa: E402
from spmoe.run.setting import Setting, resolve_setting  # noqa: E402
from spmoe.scheduler.config import SchedulerConfig  # noqa: E402
from spmoe.scheduler.log import LogWriter  # noqa: E402
from spmoe.state.commands import Command, Submit  # noqa: E402
from spmoe.state.events import Event, LayerReached, StepEnded  # noqa: E402
from spmoe.trace.excerpt import excerpt  # noqa: E402
from spmoe.trace.reader import TraceFile  # noqa: E402
from spmoe.trace.schema import PrefillLine, TokenLine, TraceInMemory  # noqa: E402
from spmoe.trace.summary import summarise  # noqa: E402
from tests.engine.timed import timed_hardware  # noqa: E402
from tests.paths import TRACES  # noqa: E402

TRACE = TRACES / "pico.jsonl"
SLOTS, GAMMA = 24, 3
NATIVES = [one for one in RECIPES.values() if one.runtime == NATIVE and one.gate is None]
SOME = ("on-demand.lru", "spmoe.per-layer", "llamacpp.cpu-moe")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return BlankPair.read("pico-target", "pico-draft", torch.float32).build(torch.device("cpu"), 2**30).bench


@pytest.fixture(scope="module")
def trace() -> TraceInMemory:
    """A few lines of two requests: the second begins in the middle."""
    pair = BlankPair.read("pico-target", "pico-draft", torch.float32)
    whole = excerpt(TraceFile(TRACE), 90, pair.model, pair.draft_model)
    first = [line for line in whole if line.request == 0][:9]
    second = [line for line in whole if isinstance(line, TokenLine) and line.request == 1][:6]
    lines = (*first, *second)
    tokens = sum(isinstance(line, TokenLine) for line in lines)
    return TraceInMemory(dataclasses.replace(whole.header, tokens=tokens), lines)


def setting_of(trace: TraceInMemory, hardware: Hardware, gamma: int | None = GAMMA) -> Setting:
    longest = summarise(trace).longest_request
    return resolve_setting(trace.header, longest, RunOptions(hardware=hardware, bits=32, slots=SLOTS, gamma=gamma))


def configured(trace: TraceInMemory, setting: Setting, one: Recipe) -> SchedulerConfig:
    return setting.configure(one)[0]


def simulated(trace: TraceInMemory, setting: Setting, one: Recipe) -> str:
    config, log = configured(trace, setting, one), StringIO()
    Runner(trace, setting).run(one, config, [LogWriter(log, config).observe])
    return log.getvalue()


def forced(bench: Bench, trace: TraceInMemory, setting: Setting, one: Recipe) -> str:
    config, log = configured(trace, setting, one), StringIO()
    bench.run(trace, config, imitated=setting.cost, observers=(LogWriter(log, config).observe,))
    return log.getvalue()


@pytest.mark.parametrize("name", [one.name for one in NATIVES])
def test_with_measured_times_it_decides_what_the_simulator_decides(
    bench: Bench, trace: TraceInMemory, name: str
) -> None:
    setting = setting_of(trace, timed_hardware())
    assert setting.cost.blind
    assert forced(bench, trace, setting, recipe(name)) == simulated(trace, setting, recipe(name))


@pytest.mark.parametrize("gamma", [1, 3, None])
@pytest.mark.parametrize("name", [one.name for one in NATIVES if one.speculation.lead(1)])
def test_drafts_go_on_past_the_window(bench: Bench, trace: TraceInMemory, name: str, gamma: int | None) -> None:
    """While the link is awaited for as long as part of a token takes, a token, many; with a draft that goes astray."""
    measured, seen = timed_hardware(), ""
    assert measured.timings is not None and measured.timings.draft_token is not None
    for share in (1, 3, 10, 100):
        link = dataclasses.replace(measured.link, bandwidth=measured.link.bandwidth // share)
        setting = setting_of(trace, dataclasses.replace(measured, link=link), gamma)
        found = forced(bench, trace, setting, recipe(name))
        assert found == simulated(trace, setting, recipe(name))
        seen += found
    assert "DraftAhead" in seen and "LeadStands" in seen


@pytest.mark.parametrize("name", SOME)
def test_so_it_does_by_the_figures_of_a_machine(bench: Bench, trace: TraceInMemory, name: str) -> None:
    setting = setting_of(trace, load_hardware("rtx-3090"))
    assert not setting.cost.blind
    assert forced(bench, trace, setting, recipe(name)) == simulated(trace, setting, recipe(name))


def test_in_real_time_it_reads_the_trace_all_the_same(bench: Bench, trace: TraceInMemory) -> None:
    """Experts, tokens per expert and tokens put out are those of the simulated run; times are not."""

    def seen(events: list[Event]) -> tuple[list[object], list[int]]:
        reached = [(each.layer, each.experts, each.tokens) for each in events if isinstance(each, LayerReached)]
        return list(reached), [each.accepted for each in events if isinstance(each, StepEnded)]

    setting = setting_of(trace, timed_hardware())
    one = recipe("spmoe.per-layer")
    config = configured(trace, setting, one)
    real: list[Event] = []
    virtual: list[Event] = []
    told: list[int] = []
    taken = bench.run(trace, config, observers=(lambda event, _: real.append(event),), told=told.append)
    Runner(trace, setting).run(one, config, [lambda event, _: virtual.append(event)])
    assert seen(real) == seen(virtual)
    assert sum(told) == trace.header.tokens
    assert taken > 0


def test_prompts_spread_over_the_experts_that_were_touched(bench: Bench, trace: TraceInMemory) -> None:
    line = next(line for line in trace if isinstance(line, PrefillLine))
    assert line.counts is not None
    events: list[Event] = []
    setting = setting_of(trace, timed_hardware())
    config = configured(trace, setting, recipe("on-demand.lru"))
    bench.run(trace, config, imitated=setting.cost, observers=(lambda event, _: events.append(event),))
    reached = [each for each in events if isinstance(each, LayerReached)][: len(line.touched)]
    assert [each.experts for each in reached] == list(line.touched)
    assert [each.tokens for each in reached] == list(line.counts)


def test_an_emulated_link_takes_its_time(bench: Bench, trace: TraceInMemory) -> None:
    """Every batch takes its bytes' time at least."""
    setting = setting_of(trace, timed_hardware())
    config = configured(trace, setting, recipe("on-demand.lru"))
    fold, batches = MetricsFold(config.experts), Counter[int]()
    took: dict[int, int] = {}

    def note(event: Event, commands: tuple[Command, ...]) -> None:
        for command in commands:
            if isinstance(command, Submit):
                batches[command.batch] = len(command.loads)
        if type(event).__name__ == "BatchArrived":
            took[event.batch] = event.ended - event.started  # type: ignore[union-attr]

    bench.run(trace, config, gbps=2.0, latency_ns=1000, observers=(fold.observe, note))
    least = bench.layout.size / 2.0
    assert took and all(took[batch] >= loads * least for batch, loads in batches.items())
    assert fold.result().tokens == trace.header.tokens
