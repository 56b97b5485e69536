"""What a run holds in memory: online policies stream, what knows the future holds two bytes per routed expert."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sim.runner import Runner
from spmoe.policy.registry import recipe
from spmoe.run.options import RunOptions
from spmoe.run.setting import resolve_setting
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import ONE, Header, TokenLine, TraceInMemory, TraceLine
from tests.conformance.cases import make_trace
from tests.sim.files import write

LAYERS, EXPERTS, TOP_K = 4, 8, 2
SHORT, LONG = 150, 600
FORECASTS = {name: (((1, ONE // 2), (0, ONE // 4)),) * LAYERS for name in ("draft", "next_gate")}


class Watched:
    """A trace file that looks, every fifty lines, how much memory is held."""

    def __init__(self, folder: Path, tokens: int) -> None:
        made = make_trace(7, LAYERS, EXPERTS, TOP_K, [tokens], prefills=False, agreement=1, empty=0)
        # All lines take the same memory, so that it does not depend on the moment.
        same = [line._replace(draft_prob=ONE, forecasts=FORECASTS) for line in made if isinstance(line, TokenLine)]
        self._file = TraceFile(write(TraceInMemory(made.header, same), folder / f"{tokens}.jsonl"))
        self.most = 0

    @property
    def header(self) -> Header:
        return self._file.header

    def __iter__(self) -> Iterator[TraceLine]:
        for number, line in enumerate(self._file):
            if number % 50 == 49:
                gc.collect()  # The interpreter's stock of freed tuples fills for a long time; this empties it.
                self.most = max(self.most, tracemalloc.get_traced_memory()[0])
            yield line


Work = Callable[[Runner], object]


def held(work: Work, folder: Path, tokens: int, gamma: int) -> int:
    """The most bytes held at a time, in a run over so many tokens."""
    trace = Watched(folder, tokens)
    runner = Runner(trace, resolve_setting(trace.header, tokens, RunOptions(slots=16, gamma=gamma)))
    tracemalloc.start()
    try:
        work(runner)
    finally:
        tracemalloc.stop()
    return trace.most


def running(policy: str) -> Work:
    chosen = recipe(policy)
    return lambda runner: runner.run(chosen, runner.setting.configure(chosen)[0])


@pytest.mark.parametrize("policy", ["on-demand.lru", "spmoe.paper"])
def test_online_policies_stream(policy: str, tmp_path: Path) -> None:
    work = running(policy)
    held(work, tmp_path, SHORT, gamma=4)  # fills what is kept once per process
    assert held(work, tmp_path, LONG, gamma=4) < 1.1 * held(work, tmp_path, SHORT, gamma=4)


@pytest.mark.parametrize("work", [running("clairvoyant"), lambda runner: runner.bound(0)], ids=["clairvoyant", "bound"])
def test_the_future_takes_two_bytes_per_routed_expert(work: Work, tmp_path: Path) -> None:
    held(work, tmp_path, SHORT, gamma=0)
    short, long = held(work, tmp_path, SHORT, gamma=0), held(work, tmp_path, LONG, gamma=0)
    # Without speculation every window is a token.  An array keeps room for a sixteenth more than is in it; heaps of a
    # few hundred entries come and go, for which a quarter of a short run is allowed.
    future = 2 * LAYERS * TOP_K * (LONG - SHORT)
    assert long - short <= future * 17 / 16 + 0.25 * short
