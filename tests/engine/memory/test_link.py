"""The link: bytes arrive intact and in order, failures are told, and nothing is left running."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the engine needs torch")

from engine.memory.copiers import runs  # noqa: E402
from engine.memory.host_store import HostStore  # noqa: E402
from engine.memory.layout import Layout  # noqa: E402
from engine.memory.link import Completion, Link  # noqa: E402
from engine.memory.slot_buffer import SlotBuffer  # noqa: E402
from spmoe.policy.parts.io_plan import copies  # noqa: E402
from spmoe.state.commands import Load, Purpose, Submit  # noqa: E402
from tests.paths import ROOT  # noqa: E402

LAYOUT = Layout.of({"up": ((3, 5), torch.float32), "down": ((7,), torch.bfloat16)})
KEYS, SLOTS, DEPTH = 24, 10, 2

on_every_device = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
        ),
    ],
)


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name == "spmoe-link"] == []


def filled(device: str = "cpu") -> tuple[HostStore, SlotBuffer]:
    """A store of random bytes and a buffer of zeros."""
    store = HostStore(LAYOUT, KEYS, pin=device == "cuda")
    store.rows(0, KEYS).copy_(
        torch.randint(1, 256, (KEYS, LAYOUT.size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    )
    store.seal()
    return store, SlotBuffer(LAYOUT, SLOTS, device)


def submit(batch: int, *pairs: tuple[int, int], attempt: int = 1) -> Submit:
    """A batch that loads (key, slot)."""
    return Submit(batch, Purpose.DEMAND, tuple(Load(key, slot, None) for key, slot in pairs), attempt)


def holds(store: HostStore, slots: SlotBuffer, slot: int, key: int | None) -> bool:
    """Whether `slot` holds the expert `key`; for None, what it held at the start."""
    expected = torch.zeros(LAYOUT.size, dtype=torch.uint8) if key is None else store.blob(key)
    return torch.equal(slots.rows(slot, 1)[0].cpu(), expected)


class Gate:
    """Holds the worker before a copy until it is let through."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self.copies: list[tuple[int, int]] = []

    def __call__(self, submit: Submit, number: int) -> None:
        self.copies.append((submit.batch, number))
        self.reached.set()
        self.open.wait()


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[tuple[int, int], ...]]:
    """Batches of loads (key, slot), with neighbours often side by side."""
    found = []
    for _ in range(draw(st.integers(1, 12))):
        pairs: list[tuple[int, int]] = []
        for _ in range(draw(st.integers(1, 4))):
            length = draw(st.integers(1, 4))
            key, slot = draw(st.integers(0, KEYS - length)), draw(st.integers(0, SLOTS - length))
            pairs += [(key + i, slot + i) for i in range(length)]
        found.append(tuple(pairs))
    return found


@on_every_device
@given(loads=batches())
@settings(max_examples=60, deadline=None)
def test_what_was_submitted_lies_in_its_slots(device: str, loads: list[tuple[tuple[int, int], ...]]) -> None:
    store, slots = filled(device)
    held: dict[int, int] = {}
    arrived: list[Completion] = []
    with Link(store, slots, DEPTH) as link:
        for batch, pairs in enumerate(loads):
            if batch - len(arrived) == DEPTH:
                arrived.append(link.wait())
            link.submit(submit(batch, *pairs))
            held.update({slot: key for key, slot in pairs})
        while len(arrived) < len(loads):
            arrived.append(link.wait())
        assert all(holds(store, slots, slot, held.get(slot)) for slot in range(SLOTS))
    assert [(done.batch, done.error) for done in arrived] == [(batch, None) for batch in range(len(loads))]
    times = [time for done in arrived for time in (done.started_ns, done.ended_ns)]
    assert times == sorted(times) and times[0] >= 0


@on_every_device
def test_computing_waits_for_copies_and_copies_for_computing(device: str) -> None:
    """Every batch overwrites what is still being read, and is read as soon as it is there."""
    store, slots = filled(device)
    sums = []
    with Link(store, slots, DEPTH) as link:
        for batch in range(200):
            link.submit(submit(batch, (batch % KEYS, 0)))
            link.wait()
            sums.append(slots.rows(0, 1).to(torch.int64).sum())
            slots.record_use([0])
    assert [int(found) for found in sums] == [int(store.blob(b % KEYS).to(torch.int64).sum()) for b in range(200)]


@given(loads=batches())
def test_neighbours_merge_as_the_planner_reckons(loads: list[tuple[tuple[int, int], ...]]) -> None:
    for pairs in loads:
        batch = submit(0, *pairs).loads
        found = runs(batch)
        assert len(found) == copies(batch)
        assert [(run.key + i, run.slot + i) for run in found for i in range(run.length)] == list(pairs)


def test_a_batch_of_neighbours_is_one_copy() -> None:
    gate = Gate()
    gate.open.set()
    store, slots = filled()
    with Link(store, slots, DEPTH, before_copy=gate) as link:
        link.submit(submit(0, (3, 1), (4, 2), (5, 3), (6, 5), (7, 6)))
        link.wait()
    assert gate.copies == [(0, 0), (0, 1)]


def test_a_thousand_batches() -> None:
    rng = random.Random(7)
    store, slots = filled()
    held: dict[int, int] = {}
    arrived = 0
    with Link(store, slots, DEPTH) as link:
        for batch in range(1000):
            pairs = tuple(zip(rng.sample(range(KEYS), 5), rng.sample(range(SLOTS), 5), strict=True))
            while batch - arrived == DEPTH:
                done = link.completions() or [link.wait()]
                assert [(each.batch, each.error) for each in done] == [(arrived + i, None) for i in range(len(done))]
                arrived += len(done)
            link.submit(submit(batch, *pairs))
            held.update({slot: key for key, slot in pairs})
        while arrived < 1000:
            assert link.wait().batch == arrived
            arrived += 1
        assert all(holds(store, slots, slot, held.get(slot)) for slot in range(SLOTS))


def test_more_than_the_depth_is_refused_until_a_completion_was_handed_out() -> None:
    gate = Gate()
    store, slots = filled()
    with Link(store, slots, DEPTH, before_copy=gate) as link:
        link.submit(submit(0, (0, 0)))
        link.submit(submit(1, (1, 1)))
        with pytest.raises(RuntimeError, match="batch 2: 2 submissions are outstanding already"):
            link.submit(submit(2, (2, 2)))
        assert link.completions() == []
        gate.open.set()
        assert link.wait().batch == 0
        link.submit(submit(2, (2, 2)))
        assert (link.wait().batch, link.wait().batch) == (1, 2)
        assert all(holds(store, slots, key, key) for key in range(3))


def test_times_count_from_the_start_given() -> None:
    store, slots = filled()
    start = time.perf_counter_ns() - 10**12
    with Link(store, slots, DEPTH, start_ns=start) as link:
        link.submit(submit(0, (0, 0)))
        done = link.wait()
    assert 10**12 <= done.started_ns <= done.ended_ns <= time.perf_counter_ns() - start


@pytest.mark.parametrize("batch", [submit(0, (0, 0)), submit(0, (0, 0), (1, 1), (5, 4), (7, 5))])
def test_a_slower_link_takes_its_time(batch: Submit) -> None:
    store, slots = filled()
    size = len(batch.loads) * LAYOUT.size
    transfer_ns, latency_ns = 20_000_000, 5_000_000
    with Link(store, slots, DEPTH, gbps=size / transfer_ns, latency_ns=latency_ns) as link:
        for _ in range(3):
            start = time.perf_counter_ns()
            link.submit(batch)
            done = link.wait()
            assert time.perf_counter_ns() - start >= latency_ns + transfer_ns
            assert done.ended_ns - done.started_ns >= transfer_ns
    assert all(holds(store, slots, load.slot, load.key) for load in batch.loads)


def test_batches_behind_each_other_share_a_slower_link() -> None:
    store, slots = filled()
    with Link(store, slots, DEPTH, gbps=LAYOUT.size / 10_000_000) as link:
        start = time.perf_counter_ns()
        link.submit(submit(0, (0, 0)))
        link.submit(submit(1, (1, 1)))
        first, second = link.wait(), link.wait()
        assert time.perf_counter_ns() - start >= 2 * 10_000_000
    assert first.ended_ns <= second.started_ns


def test_a_failed_batch_is_told_and_arrives_at_the_second_attempt() -> None:
    def fail(submit: Submit, number: int) -> None:
        if submit.attempt == 1 and submit.batch == 1 and number == 1:
            raise OSError("the link was pulled")

    store, slots = filled()
    with Link(store, slots, DEPTH, before_copy=fail) as link:
        link.submit(submit(0, (0, 0)))
        link.submit(submit(1, (5, 2), (9, 4)))
        assert link.wait().error is None
        failed = link.wait()
        assert failed.batch == 1 and failed.ended_ns >= failed.started_ns
        with pytest.raises(OSError, match="the link was pulled"):
            raise failed.error or AssertionError("it did not fail")
        assert holds(store, slots, 4, None)
        link.submit(submit(1, (5, 2), (9, 4), attempt=2))
        again = link.wait()
        assert (again.batch, again.error) == (1, None) and again.started_ns >= failed.ended_ns
        assert holds(store, slots, 2, 5) and holds(store, slots, 4, 9)


@pytest.mark.parametrize("pair", [(KEYS, 0), (0, SLOTS), (-1, 0), (0, -1)])
def test_a_load_from_or_to_nowhere_fails_and_the_link_goes_on(pair: tuple[int, int]) -> None:
    store, slots = filled()
    with Link(store, slots, DEPTH) as link:
        link.submit(submit(0, pair))
        link.submit(submit(1, (3, 3)))
        assert isinstance(link.wait().error, IndexError)
        assert link.wait().error is None
        assert holds(store, slots, 3, 3)


def test_a_dead_worker_surfaces_with_its_cause() -> None:
    class Death(BaseException):
        pass

    def die(submit: Submit, number: int) -> None:
        if submit.batch == 1:
            raise Death("no more")

    store, slots = filled()
    with Link(store, slots, DEPTH, before_copy=die) as link:
        link.submit(submit(0, (0, 0)))
        link.submit(submit(1, (1, 1)))
        assert link.wait().batch == 0
        asked: Iterable[Any] = (link.wait, link.completions, lambda: link.submit(submit(2, (2, 2))))
        for ask in (link.wait, *asked):
            with pytest.raises(RuntimeError, match="worker died: Death") as found:
                ask()
            assert isinstance(found.value.__cause__, Death)


def test_waiting_ends_with_the_time_given_or_at_once_where_nothing_can_come() -> None:
    gate = Gate()
    store, slots = filled()
    with Link(store, slots, DEPTH, before_copy=gate) as link:
        with pytest.raises(RuntimeError, match="nothing is on the link"):
            link.wait()
        link.submit(submit(0, (0, 0)))
        with pytest.raises(TimeoutError, match=r"did not arrive in 0\.01 s"):
            link.wait(timeout=0.01)
        gate.open.set()
        assert link.wait(timeout=60).batch == 0


def test_closing_during_a_copy_stops_behind_it() -> None:
    gate = Gate()
    store, slots = filled()
    link = Link(store, slots, DEPTH, before_copy=gate)
    link.submit(submit(0, (0, 0), (2, 2), (4, 4)))
    link.submit(submit(1, (6, 6)))
    gate.reached.wait()
    closer = threading.Thread(target=link.close)
    closer.start()
    link._closing.wait()
    gate.open.set()
    closer.join()
    assert gate.copies == [(0, 0)]
    assert holds(store, slots, 0, 0) and holds(store, slots, 2, None) and holds(store, slots, 6, None)


def test_closing_does_not_sit_out_a_slow_link() -> None:
    store, slots = filled()
    with Link(store, slots, DEPTH, gbps=1e-9) as link:  # A byte per second.
        link.submit(submit(0, (0, 0)))


def test_a_closed_link_says_so() -> None:
    store, slots = filled()
    link = Link(store, slots, DEPTH)
    link.submit(submit(0, (0, 0)))
    link.close()
    link.close()
    asked: Iterable[Any] = (link.wait, link.completions, lambda: link.submit(submit(1, (1, 1))))
    for ask in asked:
        with pytest.raises(RuntimeError, match="the link is closed"):
            ask()


def test_an_error_in_the_block_joins_the_worker() -> None:
    store, slots = filled()
    with pytest.raises(KeyboardInterrupt), Link(store, slots, DEPTH, gbps=1e-9) as link:
        link.submit(submit(0, (0, 0)))
        raise KeyboardInterrupt


def test_an_interrupt_ends_a_wait_and_the_process() -> None:
    program = """
from tests.engine.memory.test_link import *
store, slots = filled()
with Link(store, slots, DEPTH, gbps=1e-9) as link:
    link.submit(submit(0, (0, 0)))
    print("waiting", flush=True)
    link.wait()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode != 0 and errors.strip().endswith("KeyboardInterrupt")


def test_settings_that_make_no_sense_are_refused() -> None:
    store, slots = filled()
    with pytest.raises(ValueError, match="depth"):
        Link(store, slots, 0)
    with pytest.raises(ValueError, match="gbps"):
        Link(store, slots, DEPTH, gbps=0.0)
    other = SlotBuffer(Layout.of({"up": ((3, 5), torch.float32)}), SLOTS)
    with pytest.raises(ValueError, match="layouts"):
        Link(store, other, DEPTH)


class FakeCuda:
    """Stands for `torch.cuda`: notes in one list what is asked of streams and events, which are over at once."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.events = 0
        self.compute = self.make_stream("compute")

    def make_stream(self, name: str) -> Any:
        class Stream:
            wait_event = staticmethod(lambda event: self.calls.append(f"{name} waits for {event.name}"))
            wait_stream = staticmethod(lambda other: self.calls.append(f"{name} waits for all of {other.name}"))
            synchronize = staticmethod(lambda: self.calls.append(f"{name} synchronised"))

        found = Stream()
        found.name = name  # type: ignore[attr-defined]
        return found

    def make_event(self, enable_timing: bool = False) -> Any:
        class Event:
            name = f"event {self.events}"
            record = staticmethod(lambda stream: self.calls.append(f"{stream.name} records {Event.name}"))
            query = staticmethod(lambda: True)
            synchronize = staticmethod(lambda: None)
            elapsed_time = staticmethod(lambda other: 0.0)

        self.events += 1
        return Event()


def test_on_a_gpu_streams_wait_for_each_others_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls only, and their order: what a GPU makes of them is tested above, where there is one."""
    fake = FakeCuda()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: fake.make_stream("copies"))
    monkeypatch.setattr(torch.cuda, "Event", fake.make_event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: fake.compute)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: threading.Lock())
    store, slots = filled()
    slots.device = torch.device("cuda")
    with pytest.raises(ValueError, match="only a link on the CPU"):
        Link(store, slots, DEPTH, gbps=1.0)
    with Link(store, slots, DEPTH, before_copy=lambda submit, number: fake.calls.append(f"copy {number}")) as link:
        slots.record_use([0, 1])
        slots.record_use([2])
        link.submit(submit(0, (0, 0), (1, 1), (7, 3)))
        done = link.wait()
    assert done.error is None and 0 <= done.started_ns <= done.ended_ns
    assert fake.calls == [
        "copies waits for all of compute",
        "copies records event 0",  # Where the clock of the GPU stands.
        "compute records event 1",
        "compute records event 2",
        "copies waits for event 1",
        "copies records event 3",
        "copy 0",
        "copy 1",
        "copies records event 4",
        "compute waits for event 4",
        "copies synchronised",
    ]
