"""The driver in real time: it keeps the contract, and what it does is what the scheduler said."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

from engine.cli.trace_output import trace_of  # noqa: E402
from engine.engine import Engine  # noqa: E402
from engine.memory.copiers import MemoryCopier, Run  # noqa: E402
from engine.options import Options  # noqa: E402
from engine.plan import make_plan  # noqa: E402
from spmoe.errors import InputError  # noqa: E402
from spmoe.policy.parts.future import Future  # noqa: E402
from spmoe.policy.registry import RECIPES  # noqa: E402
from spmoe.scheduler.log import LogWriter, verify_log  # noqa: E402
from spmoe.state.commands import Command, Submit  # noqa: E402
from spmoe.state.events import BatchArrived, Event, StepEnded  # noqa: E402
from spmoe.state.keys import Shape  # noqa: E402
from spmoe.trace.reader import TraceFile  # noqa: E402
from spmoe.trace.windows import requests  # noqa: E402
from spmoe.trace.writer import write_trace  # noqa: E402
from tests.conformance.checker import ContractChecker  # noqa: E402
from tests.engine.drafted import Pair, save_pair  # noqa: E402

REQUESTS = (((1, 5, 9, 33, 7), 7), ((4,), 2), ((60, 3, 3, 8), 5))
SHAPE = Shape(3, 4, 2)

Entries = list[tuple[Event, tuple[Command, ...]]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save_pair(tmp_path_factory.mktemp("pair"), "mixtral")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> Path:
    """A trace of the requests."""
    file = tmp_path_factory.mktemp("earlier") / "trace.jsonl"
    with Engine.from_pretrained(*pair, policy="on-demand.lru", slots=8, gamma=3, record=True) as engine:
        for prompt, budget in REQUESTS:
            engine.generate(prompt, budget, ignore_eos=True)
        trace = trace_of(engine)
    write_trace(file, trace.header, trace)
    return file


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The copies that are made, in order."""
    made: list[Run] = []
    copy = MemoryCopier.copy

    def noted(self: MemoryCopier, run: Run) -> None:
        copy(self, run)
        made.append(run)

    monkeypatch.setattr(MemoryCopier, "copy", noted)
    return made


def contents(entries: Entries) -> dict[int, int]:
    """Per slot the key that lies there when all of this has happened."""
    there: dict[int, int] = {}
    submitted: dict[int, Submit] = {}
    for event, commands in entries:
        if isinstance(event, BatchArrived):
            there.update({load.slot: load.key for load in submitted.pop(event.batch).loads})
        submitted.update({command.batch: command for command in commands if isinstance(command, Submit)})
    assert not submitted, "batches never arrived"
    return there


@pytest.mark.parametrize("name", RECIPES)
def test_keeps_the_contract_and_does_as_told(
    tmp_path: Path, pair: Pair, earlier: Path, copied: list[Run], name: str
) -> None:
    """Under a slow link and a fast one, as it is drawn."""
    recipe, rng = RECIPES[name], random.Random(name)
    slots = max(rng.choice([2, 5, 8]), recipe.placement.least(SHAPE))
    gbps = rng.choice([None, 0.05])
    knows = recipe.needs & {"popularity", "hindsight", "future"}
    options = Options(
        policy=name, slots=slots, gamma=3, link_gbps=gbps, lossy=True, context=64, earlier=earlier if knows else None
    )
    plan = make_plan(*pair, options)
    checker, entries = ContractChecker(plan.config), Entries()
    stream = io.StringIO()
    log = LogWriter(stream, plan.config)
    with Engine(
        plan, [checker.observe, log.observe, lambda event, commands: entries.append((event, commands))]
    ) as engine:
        for prompt, budget in REQUESTS:
            assert len(engine.generate(prompt, budget, ignore_eos=True).tokens) == budget
        engine.finish()
        engine.check_weights()
        checker.finish()
        log.close()
        # What the slots hold is what the log says, byte for byte.
        for slot, key in contents(entries).items():
            assert torch.equal(engine._slots.rows(slot, 1)[0], engine._store.blob(key))
        transfers, metrics = engine.transfers(), engine.metrics()
    commanded = [
        load for _, commands in entries for each in commands if isinstance(each, Submit) for load in each.loads
    ]
    carried_out = [(run.key + n, run.slot + n) for run in copied for n in range(run.length)]
    assert carried_out == [(load.key, load.slot) for load in commanded]
    assert transfers.loads == len(commanded)
    steps = [event for event, _ in entries if isinstance(event, StepEnded)]
    assert (metrics.steps, metrics.requests, metrics.prefills) == (len(steps), 3, 3)
    assert metrics.tokens + 3 == sum(budget for _, budget in REQUESTS)
    file = tmp_path / "run.log"
    file.write_text(stream.getvalue())
    verified = verify_log(file, lambda config: Future(lambda: requests(TraceFile(earlier, ())), config.gamma))
    assert (verified.recipe, verified.events) == (name, len(entries))


def test_a_log_with_a_changed_byte_is_refused(tmp_path: Path, pair: Pair) -> None:
    """Digits are changed, one at a time: of slots, keys and plans, which a fresh scheduler would set otherwise."""
    plan = make_plan(*pair, Options(slots=5, gamma=3, context=64))
    stream = io.StringIO()
    log = LogWriter(stream, plan.config)
    with Engine(plan, [log.observe]) as engine:
        engine.generate(*REQUESTS[0], ignore_eos=True)
        engine.finish()
        log.close()
    whole, file = stream.getvalue(), tmp_path / "run.log"
    file.write_text(whole)
    verify_log(file)
    lines = whole.splitlines(keepends=True)
    rng = random.Random(0)
    for number in rng.sample([n for n, line in enumerate(lines) if '"command"' in line], 25):
        places = [place for place, char in enumerate(lines[number]) if char.isdigit()]
        if not places:
            continue
        place = rng.choice(places)
        digit = str((int(lines[number][place]) + 1) % 10)
        changed = [*lines]
        changed[number] = lines[number][:place] + digit + lines[number][place + 1 :]
        file.write_text("".join(changed))
        with pytest.raises(InputError, match=f"run.log:{number + 1}"):
            verify_log(file)
    file.write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match="cut off"):
        verify_log(file)


def test_what_is_on_the_link_at_the_end_arrives(pair: Pair) -> None:
    """A slow link and a policy that prefetches to the last moment; nothing is told before somebody asks."""
    entries = Entries()
    plan = make_plan(*pair, Options(policy="spmoe.popular", slots=5, gamma=2, link_gbps=0.002, context=64))
    with Engine(plan, [lambda event, commands: entries.append((event, commands))]) as engine:
        for _ in range(5):
            engine.generate((1, 5, 9), 3, ignore_eos=True)
            before = len(entries)
            engine.finish()
            contents(entries)
            assert all(isinstance(event, BatchArrived) for event, _ in entries[before:])
            engine.finish()  # Once more: nothing is left.
            engine.check_weights()


@pytest.mark.parametrize("options", [{}, {"virtual_time": "rtx-4090"}], ids=["real", "virtual"])
def test_a_stream_left_half_way_leaves_a_run_that_can_go_on(
    tmp_path: Path, pair: Pair, options: dict[str, Any]
) -> None:
    plan = make_plan(*pair, Options(slots=5, gamma=3, context=64, **options))
    checker = ContractChecker(plan.config)
    with Engine(plan, [checker.observe]) as engine:
        whole = engine.generate((1, 5, 9), 12, ignore_eos=True).tokens
        stream = engine.stream((1, 5, 9), 12, ignore_eos=True)
        part = next(stream).tokens + next(stream).tokens
        with pytest.raises(RuntimeError, match="busy"):
            engine.generate((1,), 2)
        stream.close()
        assert whole[: len(part)] == part
        assert engine.generate((1, 5, 9), 12, ignore_eos=True).tokens == whole
        engine.finish()
        checker.finish()
