"""Drafts of chosen lengths, and drafts that go on past the window: the output is that of plain decoding."""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
pytest.importorskip("transformers", reason="the engine needs transformers")

from engine.decoding.draft_model import DraftModel, Poll  # noqa: E402
from engine.decoding.drafter import Drafter  # noqa: E402
from engine.decoding.passes import RoundPass  # noqa: E402
from engine.decoding.sampler import Proposal  # noqa: E402
from engine.engine import Engine  # noqa: E402
from engine.options import Options  # noqa: E402
from engine.plan import make_plan  # noqa: E402
from spmoe.machine.hardware import Hardware  # noqa: E402
from spmoe.scheduler.log import LogWriter, verify_log  # noqa: E402
from spmoe.state.commands import Command, DraftAhead, Verify  # noqa: E402
from spmoe.state.events import DraftPredicted, Event, LeadStands, LinkAwaited  # noqa: E402
from tests.conformance.checker import ContractChecker  # noqa: E402
from tests.engine.pairs import Pairs  # noqa: E402
from tests.engine.runs import FAST  # noqa: E402
from tests.engine.tiny import tokens  # noqa: E402
from tests.soak import times  # noqa: E402

WAITING = replace(FAST, link=replace(FAST.link, bandwidth=3 * 10**6))
"""Its link takes a tiny expert ten times as long as the draft a token: the draft goes on far."""
PATIENT = replace(FAST, gpu=replace(FAST.gpu, layer_overhead_ns=10**7))
"""By its figures a draft's token takes longer than it does in a test, so that it may go on in real time, too."""
SHORT = replace(FAST, link=replace(FAST.link, bandwidth=2 * 10**7))
"""Its link takes an expert hardly longer than the draft a token: often a token is only begun."""
LINK_GBPS = 2e-4
Plain = Callable[[tuple[int, ...]], tuple[int, ...]]
LENGTHS: dict[str, dict[str, int]] = {"three": {"gamma": 3}, "one": {"gamma": 1}, "open": {}, "few": {"gamma_max": 4}}

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class Watched(Engine):
    """An engine under `spmoe.foresight`, whose run is held against the contract and counted."""

    def __init__(self, target: Path, draft: Path | None, machine: Hardware | None, **options: Any) -> None:
        """In virtual time on `machine`, or in real time with a slow link where there is none."""
        time = {"hardware": PATIENT, "link_gbps": LINK_GBPS} if machine is None else {"virtual_time": machine}
        given = {"policy": "spmoe.foresight", "slots": 6, "context": 128, "dtype": "float32", **time, **options}
        given.setdefault("cpu_experts", False)  # Else hardly anything waits for the link.
        plan = make_plan(target, draft, Options(**given))
        self.seen: Counter[str] = Counter()
        self.checker = ContractChecker(plan.config)
        self.written = io.StringIO()
        self.log = LogWriter(self.written, plan.config)
        super().__init__(plan, [self.checker.observe, self.log.observe, self._count])

    def verify(self, folder: Path) -> None:
        """The run is over: its log repeats, and nothing is half done."""
        self.finish()
        self.checker.finish()
        self.log.close()
        (folder / "log").write_text(self.written.getvalue())
        verify_log(folder / "log")

    def _count(self, event: Event, commands: tuple[Command, ...]) -> None:
        self.seen[type(event).__name__] += 1
        for command in commands:
            self.seen[type(command).__name__] += 1
            if isinstance(command, Verify):
                self.seen["dropped"] += command.drafted == getattr(event, "token", None)


@pytest.fixture(scope="module")
def plain(pairs: Pairs) -> Plain:
    """What plain decoding puts behind a prompt, for as long as any test asks for."""
    target = pairs.target("mixtral")
    return cache(lambda prompt: tuple(pairs.plain(target, torch.float32, prompt, 24, None).tokens))


def prompts(count: int) -> list[tuple[int, ...]]:
    return [prompt_of(length, seed) for seed, length in zip(range(count), (5, 1, 21, 9, 33), strict=False)]


def prompt_of(length: int, seed: int) -> tuple[int, ...]:
    return tuple(tokens(length, seed).tolist()[0])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("draft", ["itself", "noisy", "random"])
def test_every_token_is_that_of_plain_decoding(
    tmp_path: Path, pairs: Pairs, plain: Plain, draft: str, length: str
) -> None:
    target = pairs.target("mixtral")
    with Watched(target, pairs.draft(draft, "mixtral"), WAITING, **LENGTHS[length]) as engine:
        for prompt in prompts(times(3)):
            text = plain(prompt)
            for budget in (1, 2, 5, 23):
                assert engine.generate(prompt, budget, ignore_eos=True).tokens == text[:budget]
        engine.verify(tmp_path)
    assert engine.seen[DraftAhead.__name__] > 10
    assert engine.seen[LeadStands.__name__] > 0 or draft == "random"
    if length == "open":
        assert max(engine.lengths()) <= 16
        assert engine.seen["dropped"] > 0


@pytest.mark.parametrize("length", ["three", "open"])
def test_so_it_is_in_real_time(tmp_path: Path, pairs: Pairs, plain: Plain, length: str) -> None:
    target = pairs.target("mixtral")
    with Watched(target, pairs.draft("itself", "mixtral"), None, **LENGTHS[length]) as engine:
        for prompt in prompts(2):
            assert engine.generate(prompt, 7, ignore_eos=True).tokens == plain(prompt)[:7]
        engine.verify(tmp_path)
    assert engine.seen[LinkAwaited.__name__] > 0


@pytest.mark.parametrize("length", ["three", "few"])
@pytest.mark.parametrize("draft", ["itself", "noisy"])
def test_the_end_may_be_anywhere(tmp_path: Path, pairs: Pairs, plain: Plain, draft: str, length: str) -> None:
    """Inside the window, at its end, behind it, and among what was drafted past it."""
    prompt = prompt_of(7, 0)
    text = plain(prompt)
    fresh = [place for place, token in enumerate(text) if token not in text[:place]]
    with Watched(pairs.target("mixtral"), pairs.draft(draft, "mixtral"), WAITING, **LENGTHS[length]) as engine:
        for place in fresh[:6]:
            engine.ends = frozenset({text[place]})
            for _ in range(2):  # The second knows the draft, and goes on with a cache that is warm for it.
                assert engine.generate(prompt, 24).tokens == text[: place + 1]
        engine.verify(tmp_path)


@pytest.mark.parametrize("length", ["three", "open"])
def test_a_token_half_read_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, pairs: Pairs, length: str) -> None:
    """All that the draft proposes is what its model would say of the tokens before, read at once."""
    folder = pairs.draft("noisy", "mixtral")
    assert folder is not None
    reference = pairs.eager(folder, torch.float64)
    propose, forget = Drafter.propose, DraftModel.forget
    half_read = 0

    def compared(self: Drafter, poll: Poll) -> Proposal:
        found = propose(self, poll)
        assert found.token == int(reference(input_ids=torch.tensor([self.context])).logits[0, -1].argmax())
        return found

    def checked(self: DraftModel, length: int) -> None:
        nonlocal half_read
        layers: list[Any] = self._run._cache.layers
        half_read += len({layer.get_seq_length() for layer in layers}) > 1
        forget(self, length)
        assert {layer.get_seq_length() for layer in layers} <= {self._run.length}

    monkeypatch.setattr(Drafter, "propose", compared)
    monkeypatch.setattr(DraftModel, "forget", checked)
    with Watched(pairs.target("mixtral"), folder, SHORT, dtype="float64", **LENGTHS[length]) as engine:
        for prompt in prompts(2):
            engine.generate(prompt, 16, ignore_eos=True)
    assert half_read


@pytest.mark.parametrize("machine", [WAITING, None], ids=["virtual", "real"])
def test_an_error_past_the_window_comes_out_once(
    monkeypatch: pytest.MonkeyPatch, pairs: Pairs, machine: Hardware | None
) -> None:
    """In the middle of the draft's forward pass."""
    reached, attention = DraftModel._layer_reached, RoundPass.attention
    verifying = False

    def begins(self: RoundPass, layer: int) -> Any:
        nonlocal verifying
        verifying = True
        return attention(self, layer)

    def fails(self: DraftModel, *arguments: Any) -> None:
        if verifying and self.running:
            raise ArithmeticError("no such number")
        reached(self, *arguments)

    monkeypatch.setattr(RoundPass, "attention", begins)
    monkeypatch.setattr(DraftModel, "_layer_reached", fails)
    with Watched(pairs.target("mixtral"), pairs.draft("itself", "mixtral"), machine, gamma=2) as engine:
        with pytest.raises(ArithmeticError, match="no such number"):
            engine.generate((1, 5, 9), 20, ignore_eos=True)
        with pytest.raises(RuntimeError, match="in the middle of one by an error"):
            engine.generate((1, 5, 9), 20)
    with pytest.raises(RuntimeError):
        engine.generate((1, 5, 9), 20)


def test_an_interrupt_past_the_window_leaves_nothing_running(pairs: Pairs) -> None:
    """With the draft stopped in the middle of its pass, and batches on the link."""

    def interrupt(event: Event, _commands: tuple[Command, ...]) -> None:
        if isinstance(event, DraftPredicted) and engine.checker.granted is not None:
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        Watched(pairs.target("mixtral"), pairs.draft("itself", "mixtral"), WAITING, gamma=2) as engine,
    ):
        dispatcher = engine._driver._dispatcher
        dispatcher._observers = (*dispatcher._observers, interrupt)
        engine.generate((1, 5, 9), 20, ignore_eos=True)


def test_a_draft_that_takes_too_long_does_not_go_on(pairs: Pairs) -> None:
    """By the figures of a machine on which it takes no time at all."""
    fast = replace(FAST, gpu=replace(FAST.gpu, layer_overhead_ns=1))
    pair = pairs.target("mixtral"), pairs.draft("itself", "mixtral")
    with Watched(*pair, None, gamma=3, hardware=fast) as engine:
        engine.generate((1, 5, 9), 12, ignore_eos=True)
        told = engine.seen[LinkAwaited.__name__]
        engine.generate((1, 5, 9), 12, ignore_eos=True)
        assert engine.seen[LinkAwaited.__name__] == told
    assert engine.seen["LayerDone"] > 0
