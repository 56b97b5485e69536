"""A call that suspends in the middle of its call stack, and goes on from there when it is resumed.

A forward pass of transformers is a call stack, which cannot yield as a generator does.  greenlet switches between
stacks within one thread: so a pass computes with the thread's number of threads and enqueues on its current stream.
torch's modes belong to the thread, too, whichever stack is running: code that enters one (`torch.inference_mode`) must
not suspend inside of it; the code that resumes enters it around the whole life of the coroutine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet


class Coroutine:
    """Runs a call piece by piece; all methods belong to the stack that made it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        """`function` begins with the first `resume`."""
        self._greenlet = greenlet(function)

    @property
    def over(self) -> bool:
        """Whether the call has returned, raised or been cancelled."""
        return bool(self._greenlet.dead)

    def resume(self) -> Any:
        """The value that the call suspends with next or, when it is over, returns.

        Raises what the call raises, and RuntimeError where it is over already.
        """
        if self._greenlet.dead:
            raise RuntimeError("the call is over")
        return self._greenlet.switch()

    def cancel(self) -> None:
        """Unwinds the call from where it is: its `finally` blocks run.  Idempotent."""
        if not self._greenlet.dead:
            self._greenlet.throw()


def suspend(value: Any = None) -> None:
    """For code inside a coroutine: hands `value` to the code that resumed it, and returns when it is resumed again."""
    parent = getcurrent().parent
    if parent is None:
        raise RuntimeError("nothing to suspend: this is no coroutine")
    parent.switch(value)
