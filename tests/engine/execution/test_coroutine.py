"""Work that stops in the middle and goes on when more is asked: by turns, and without anything left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

from engine.execution.coroutine import Aside, Piece  # noqa: E402
from spmoe.drive.step import DraftLayers, DraftToken  # noqa: E402

CPU = torch.device("cpu")
PIECES: tuple[Piece, ...] = (DraftLayers(4, 0, 2), DraftLayers(4, 2, 3), DraftToken(4, 3))


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_it_goes_on_where_it_stopped() -> None:
    seen: list[object] = []

    def work(aside: Aside) -> None:
        inner(aside, 2)

    def inner(aside: Aside, depth: int) -> None:
        if depth:  # A call stack, in the middle of which it stops.
            inner(aside, depth - 1)
        while True:
            seen.append((depth, aside.asked))
            aside.answer(len(seen))

    with Aside(CPU) as aside:
        assert [aside.ask(piece, work) for piece in PIECES] == [1, 2, 3]
        assert seen == [(0, piece) for piece in PIECES]
        aside.leave()
        assert aside.asked is None
        aside.leave()
        assert aside.ask(PIECES[0], work) == 4


def test_what_is_left_unwinds() -> None:
    left: list[str] = []

    def work(aside: Aside) -> None:
        try:
            while True:
                aside.answer(None)
        finally:
            left.append(threading.current_thread().name)

    with Aside(CPU) as aside:
        for round in range(3):
            aside.ask(PIECES[0], work)
            assert len(left) == round
            aside.leave()
            assert len(left) == round + 1
        aside.ask(PIECES[0], work)
    assert len(left) == 4 and all(name.startswith("spmoe-draft") for name in left)
    aside.close()


def test_an_error_comes_once() -> None:
    def work(aside: Aside) -> None:
        aside.answer(1)
        raise ArithmeticError("no such number")

    with Aside(CPU) as aside:
        assert aside.ask(PIECES[0], work) == 1
        with pytest.raises(ArithmeticError, match="no such number"):
            aside.ask(PIECES[1], work)
        aside.leave()
        assert aside.ask(PIECES[0], work) == 1


def test_it_computes_as_its_owner_does() -> None:
    def work(aside: Aside) -> None:
        aside.answer((torch.is_inference_mode_enabled(), torch.get_num_threads()))

    with Aside(CPU) as aside:
        assert aside.ask(PIECES[0], work) == (True, torch.get_num_threads())


def test_an_owner_who_was_interrupted_can_close() -> None:
    """It no longer waits for the answer, which comes all the same."""
    begun, go_on = threading.Event(), threading.Event()

    def work(aside: Aside) -> None:
        begun.set()
        go_on.wait()
        aside.answer(1)

    aside = Aside(CPU)
    asking = threading.Thread(target=lambda: aside.ask(PIECES[0], work))  # As if it were interrupted.
    asking.start()
    begun.wait()
    go_on.set()
    aside.close()
    asking.join()
