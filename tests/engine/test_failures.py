"""Copies that fail, experts that fail, and interrupts: the tokens are right or there are none, and nothing is left."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

import engine.decoding.layer_experts as layer_experts  # noqa: E402
from engine.engine import Engine  # noqa: E402
from engine.memory.copiers import Flight, MemoryCopier, Run  # noqa: E402
from engine.options import Options  # noqa: E402
from engine.plan import make_plan  # noqa: E402
from spmoe.errors import InputError  # noqa: E402
from spmoe.scheduler.loads import TransferFailed  # noqa: E402
from spmoe.scheduler.log import LogWriter, verify_log  # noqa: E402
from spmoe.state.commands import Command, Submit  # noqa: E402
from spmoe.state.events import BatchFailed, Event, LayerReached, TokenDrafted  # noqa: E402
from tests.conformance.checker import ContractChecker  # noqa: E402
from tests.engine.drafted import Pair, save_pair  # noqa: E402
from tests.engine.tiny import eager_model  # noqa: E402

PROMPT, BUDGET = (1, 5, 9, 33, 7), 12

in_both_times = pytest.mark.parametrize("time", [None, "rtx-4090"], ids=["real", "virtual"])


class Stop(BaseException):
    """What nobody catches."""


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save_pair(tmp_path_factory.mktemp("pair"), "mixtral")


@pytest.fixture(scope="module")
def expected(pair: Pair) -> tuple[int, ...]:
    """What plain decoding puts out."""
    model = eager_model(pair.target, torch.float32)
    tokens = model.generate(torch.tensor([PROMPT]), max_new_tokens=BUDGET, do_sample=False, eos_token_id=None)
    return tuple(tokens[0, len(PROMPT) :].tolist())


def fail_copies(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Submit], BaseException | None]) -> None:
    """Have `fails` say of every batch what its last copy raises, if anything; what came before it was copied."""
    begin, copy = MemoryCopier.begin, MemoryCopier.copy
    under_way: list[Submit] = []
    left: list[int] = []

    def noted(self: MemoryCopier, flight: Flight) -> None:
        begin(self, flight)
        under_way[:] = [flight.submit]
        left[:] = [len(flight.submit.loads)]

    def failing(self: MemoryCopier, run: Run) -> None:
        left[0] -= run.length
        error = fails(under_way[0]) if not left[0] else None
        if error is not None:
            self._slots.rows(run.slot, run.length).fill_(0x7F)  # What a torn copy may leave behind.
            raise error
        copy(self, run)

    monkeypatch.setattr(MemoryCopier, "begin", noted)
    monkeypatch.setattr(MemoryCopier, "copy", failing)


def options(time: str | None, **given: Any) -> Options:
    return Options(**{"slots": 5, "gamma": 3, "context": 64, "virtual_time": time, **given})


@in_both_times
@pytest.mark.parametrize("policy", ["spmoe.per-layer", "on-demand.lru", "llamacpp.n-cpu-moe"])
@pytest.mark.parametrize("every", [1, 3])
def test_a_copy_that_fails_once_is_made_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pair: Pair,
    expected: tuple[int, ...],
    time: str | None,
    policy: str,
    every: int,
) -> None:
    fail_copies(
        monkeypatch,
        lambda submit: OSError("a bad cable") if submit.attempt == 1 and submit.batch % every == 0 else None,
    )
    plan = make_plan(*pair, options(time, policy=policy, slots=6))
    failed: list[int] = []
    checker = ContractChecker(plan.config)
    stream = io.StringIO()
    log = LogWriter(stream, plan.config)

    def observe(event: Event, commands: tuple[Command, ...]) -> None:
        checker.observe(event, commands)
        log.observe(event, commands)
        if isinstance(event, BatchFailed):
            failed.append(event.batch)

    with Engine(plan, [observe]) as engine:
        assert engine.generate(PROMPT, BUDGET, ignore_eos=True).tokens == expected
        engine.finish()
        engine.check_weights()
        log.close()
    checker.finish()
    assert len(failed) > 3 or policy == "llamacpp.n-cpu-moe"
    (tmp_path / "log").write_text(stream.getvalue())
    verify_log(tmp_path / "log")


@in_both_times
@pytest.mark.parametrize("batch", [0, 7])
def test_a_copy_that_fails_twice_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, pair: Pair, time: str | None, batch: int
) -> None:
    fail_copies(monkeypatch, lambda submit: OSError("a bad cable") if submit.batch == batch else None)
    with Engine(make_plan(*pair, options(time))) as engine:
        with pytest.raises(TransferFailed, match=rf"batch {batch}\b.*: a bad cable") as failure:
            engine.generate(PROMPT, BUDGET, ignore_eos=True)
        assert isinstance(failure.value.__cause__, OSError)
        with pytest.raises(RuntimeError, match="in the middle of one by an error"):
            engine.generate(PROMPT, BUDGET)
    with pytest.raises(RuntimeError):
        engine.generate(PROMPT, BUDGET)


@in_both_times
def test_the_death_of_the_links_worker_is_told_with_its_cause(
    monkeypatch: pytest.MonkeyPatch, pair: Pair, time: str | None
) -> None:
    fail_copies(monkeypatch, lambda submit: Stop("out of the blue") if submit.batch == 4 else None)
    with Engine(make_plan(*pair, options(time))) as engine:
        with pytest.raises(RuntimeError, match=r"worker died.*out of the blue") as failure:
            engine.generate(PROMPT, BUDGET, ignore_eos=True)
        assert isinstance(failure.value.__cause__, Stop)
        with pytest.raises(RuntimeError, match="in the middle of one by an error"):
            engine.generate(PROMPT, BUDGET)


@in_both_times
@pytest.mark.parametrize("policy", ["llamacpp.cpu-moe", "moe-spac"])
def test_an_expert_that_fails_on_the_cpu_is_told(
    monkeypatch: pytest.MonkeyPatch, pair: Pair, time: str | None, policy: str
) -> None:
    count = 0

    def fails(*_arguments: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 5:
            raise ArithmeticError("no such number")
        return honest(*_arguments)

    honest = layer_experts.expert_output
    monkeypatch.setattr(layer_experts, "expert_output", fails)
    with Engine(make_plan(*pair, options(time, policy=policy))) as engine:
        with pytest.raises(ArithmeticError, match="no such number"):
            engine.generate(PROMPT, BUDGET, ignore_eos=True)
        with pytest.raises(RuntimeError, match="in the middle of one by an error"):
            engine.generate(PROMPT, BUDGET)


@in_both_times
@pytest.mark.parametrize("moment", [LayerReached, TokenDrafted])
def test_an_interrupt_in_the_middle_of_a_pass_leaves_nothing_running(
    pair: Pair, time: str | None, moment: type[Event]
) -> None:
    """With batches on a slow link; it does not wait for them."""
    seen = 0

    def interrupt(event: Event, commands: tuple[Command, ...]) -> None:
        nonlocal seen
        seen += isinstance(event, moment)
        if seen == 5:
            raise KeyboardInterrupt

    slow = {} if time else {"link_gbps": 1e-4}
    with (
        pytest.raises(KeyboardInterrupt),
        Engine(make_plan(*pair, options(time, slots=8, **slow)), [interrupt]) as engine,
    ):
        engine.generate(PROMPT, BUDGET, ignore_eos=True)
    with pytest.raises(RuntimeError):
        engine.generate(PROMPT, BUDGET)


def test_a_failure_while_setting_up_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    def fails(*_arguments: Any, **_options: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("engine.decoding.session.TargetModel", fails)
    with pytest.raises(InputError, match="out of memory on cpu"):
        Engine(make_plan(*pair, options(None)))


def test_an_expert_that_changes_in_host_memory_is_found(pair: Pair) -> None:
    with Engine(make_plan(*pair, options(None, slots=12))) as engine:
        engine.check_weights()
        engine._store.blob(7)[20] ^= 1
        with pytest.raises(RuntimeError, match="expert 7 has changed in host memory"):
            engine.check_weights()


def test_an_expert_that_arrives_wrong_is_found(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    copy = MemoryCopier.copy

    def flips_a_bit(self: MemoryCopier, run: Run) -> None:
        copy(self, run)
        if run.key <= 3 < run.key + run.length:
            self._slots.rows(run.slot + 3 - run.key, 1)[0, 0] ^= 1

    monkeypatch.setattr(MemoryCopier, "copy", flips_a_bit)
    with Engine(make_plan(*pair, options(None, slots=12))) as engine:
        engine.generate(PROMPT, BUDGET, ignore_eos=True)
        engine.finish()
        with pytest.raises(RuntimeError, match="expert 3 in slot"):
            engine.check_weights()
