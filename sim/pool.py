"""Work spread over processes that never outlive their parent."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

from spmoe.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


def spread(work: Callable[[T], R], tasks: Sequence[T], jobs: int) -> Generator[R, None, None]:
    """What `work` makes of each task, in the order in which they finish, by `jobs` processes; 1: in this one.

    `work`, tasks and results have to be picklable.  When the iteration ends early (an exception, an interrupt, the
    iterator dropped) or this process dies, however that comes about, the workers stop at once.  Raises what `work`
    raises, and InputError where a worker died.
    """
    if min(jobs, len(tasks)) <= 1:
        yield from map(work, tasks)
        return
    context = get_context("spawn")
    leash, hand = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), context, initializer=_hold, initargs=(leash,))
    try:
        with _interrupts_blocked():
            futures = [pool.submit(work, task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
        pool.shutdown()
    except BrokenProcessPool:
        raise InputError(
            "jobs: a worker process died, perhaps for want of memory; expected fewer jobs, or smaller traces"
        ) from None
    finally:
        hand.close()  # Lets go of the workers that are left.
        pool.shutdown(cancel_futures=True)
        leash.close()


def check_jobs(jobs: int | None) -> int:
    """The number of processes; InputError for one that cannot be."""
    if jobs is None:
        return os.cpu_count() or 1
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise InputError(f"jobs: expected a number of processes, at least 1, got {jobs!r}")
    return jobs


def _hold(leash: Connection) -> None:
    """In a worker: ends the process as soon as the other end of the pipe is closed, if only by the parent's death."""

    def wait() -> None:
        try:
            leash.recv()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C, which a terminal sends to all: it is the parent's to answer."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
