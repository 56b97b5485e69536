"""Work that stops in the middle of a forward pass, and goes on when more is asked of it.

A forward pass of transformers is a call stack, which cannot yield as a generator does.  So it gets a thread of its own,
as a coroutine: exactly one of the two threads runs at any time, the other waits for it.  On a GPU both enqueue on the
same stream.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch

from engine.memory.closing import Closing
from spmoe.drive.step import DraftLayers, DraftToken

Piece = DraftLayers | DraftToken
"""What is asked for at a time."""


class Left(BaseException):
    """Nothing more is asked: raised inside the work, to unwind it."""


class _Failed(NamedTuple):
    error: BaseException


class Aside(Closing):
    """Runs one piece of work at a time, by turns with whoever asks."""

    def __init__(self, device: torch.device) -> None:
        """`device` is what the work computes on."""
        self._device = device
        # A thread does not inherit how many threads it may compute with, and sums depend on that.
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(1, "spmoe-draft", initializer=torch.set_num_threads, initargs=(threads,))
        self._work: Future[None] | None = None
        self._pieces: SimpleQueue[Piece | None] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self.asked: Piece | None = None
        """What the work is to do next; None where nobody asks."""

    def ask(self, piece: Piece, work: Callable[[Aside], None]) -> Any:
        """What comes of `piece`: has the work go on until it answers; begins `work` where none is under way.

        Raises what the work raises.
        """
        self.asked = piece
        if self._work is None:
            self._pieces, self._answers = SimpleQueue(), SimpleQueue()
            self._work = self._pool.submit(self._run, work, self._stream())
        else:
            self._pieces.put(piece)
        answer = self._answers.get()
        if isinstance(answer, _Failed):
            raise answer.error
        return answer

    def answer(self, value: Any) -> None:
        """For the work: this came of what was asked.  Returns when more is; raises `Left` where nothing is."""
        self._answers.put(value)
        self.asked = self._pieces.get()
        if self.asked is None:
            raise Left

    def look(self) -> None:
        """Nothing: whoever asks looks at what arrived."""

    def leave(self) -> None:
        """Nothing more is asked: the work under way, if any, unwinds from where it is."""
        if self._work is not None:
            self._pieces.put(None)
            self._work.result()
            self._work = self.asked = None

    def close(self) -> None:
        """Leave the work and join the thread.  Idempotent."""
        self.leave()
        self._pieces.put(None)  # Should somebody have been interrupted while it began.
        self._pool.shutdown()

    def _stream(self) -> AbstractContextManager[Any]:
        """A block that enqueues where the asking thread does."""
        if self._device.type != "cuda":
            return nullcontext()
        return torch.cuda.stream(torch.cuda.current_stream(self._device))

    def _run(self, work: Callable[[Aside], None], stream: AbstractContextManager[Any]) -> None:
        try:
            with torch.inference_mode(), stream:
                work(self)
        except Left:
            pass
        except BaseException as error:
            self._answers.put(_Failed(error))
