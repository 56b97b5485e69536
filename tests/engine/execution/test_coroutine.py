"""Calls that suspend in the middle and go on when they are resumed, with nothing left behind."""

from __future__ import annotations

import threading
import traceback
from contextvars import ContextVar

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

from engine.execution.coroutine import Coroutine, suspend  # noqa: E402


def nested(depth: int) -> str:
    """Suspends at the bottom of a call stack, twice."""
    if depth:
        return nested(depth - 1)
    suspend("first")
    suspend("second")
    return "end"


def test_it_goes_on_where_it_suspended() -> None:
    one, other = Coroutine(lambda: nested(2)), Coroutine(lambda: nested(5))
    assert [one.resume(), other.resume(), one.resume()] == ["first", "first", "second"]
    assert not one.over
    assert one.resume() == "end" and one.over
    assert [other.resume(), other.resume()] == ["second", "end"]


def test_nothing_comes_after_the_end() -> None:
    done = Coroutine(lambda: 1)
    assert done.resume() == 1
    with pytest.raises(RuntimeError, match="the call is over"):
        done.resume()
    done.cancel()


def test_it_runs_in_the_thread_and_the_modes_of_whoever_resumes_it() -> None:
    def look() -> tuple[object, bool, int]:
        return threading.current_thread(), torch.is_inference_mode_enabled(), torch.get_num_threads()

    def call() -> None:
        suspend(look())
        suspend(look())

    coroutine = Coroutine(call)
    with torch.inference_mode():
        assert coroutine.resume() == look()
    assert coroutine.resume() == look()
    coroutine.cancel()


def test_context_variables_stay_within() -> None:
    """transformers sets one around a forward pass, and another pass runs before it is reset."""
    variable: ContextVar[int] = ContextVar("variable", default=0)

    def call() -> None:
        token = variable.set(1)
        suspend(variable.get())
        variable.reset(token)

    one, other = Coroutine(call), Coroutine(call)
    assert (one.resume(), variable.get(), other.resume()) == (1, 0, 1)
    one.resume()
    other.resume()
    assert variable.get() == 0


def test_what_is_cancelled_unwinds() -> None:
    unwound: list[int] = []

    def call() -> None:
        try:
            suspend()
        except Exception:
            unwound.append(-1)
        finally:
            unwound.append(1)

    coroutine = Coroutine(call)
    coroutine.cancel()
    assert coroutine.over and not unwound  # Never begun.
    coroutine = Coroutine(call)
    coroutine.resume()
    coroutine.cancel()
    assert coroutine.over and unwound == [1]
    coroutine.cancel()
    assert unwound == [1]


def test_an_error_while_unwinding_comes_out() -> None:
    def call() -> None:
        try:
            suspend()
        finally:
            raise ArithmeticError("no such number")

    coroutine = Coroutine(call)
    coroutine.resume()
    with pytest.raises(ArithmeticError, match="no such number"):
        coroutine.cancel()


@pytest.mark.parametrize("error", [ArithmeticError("no such number"), KeyboardInterrupt()])
def test_an_error_comes_out_once_with_its_traceback(error: BaseException) -> None:
    def raising() -> None:
        suspend(1)
        raise error

    coroutine = Coroutine(lambda: raising())
    assert coroutine.resume() == 1
    with pytest.raises(type(error)) as found:
        coroutine.resume()
    assert "raising" in [frame.name for frame in traceback.extract_tb(found.tb)]
    assert coroutine.over


def test_what_is_no_coroutine_cannot_suspend() -> None:
    with pytest.raises(RuntimeError, match="nothing to suspend"):
        suspend()
