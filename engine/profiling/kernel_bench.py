"""How fast device and CPU compute: experts by their tokens, and what memory and arithmetic give at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from typing import Any, Final, NamedTuple

import torch

from engine.memory.host_store import HostStore
from engine.memory.slot_buffer import SlotBuffer
from engine.moe.eager import expert_output
from engine.profiling.fit import Median

TOKENS: Final = (1, 2, 4, 8, 16)
READINGS: Final = 30
_SQUARE: Final = 1024
_AT_ONCE: Final = 10
_LARGE: Final = 256 * 2**20
"""Bytes: more than caches hold."""


def time_experts(module: Any, hidden: int, slots: SlotBuffer, dtype: torch.dtype) -> dict[int, Median]:
    """One expert on the device, by its tokens; each time another slot."""
    places = cycle(range(slots.slots))
    return _by_tokens(module, _States(hidden, dtype, slots.device), lambda: slots.views(next(places)))


def time_host_experts(
    module: Any, hidden: int, store: HostStore, dtype: torch.dtype, threads: Sequence[int]
) -> dict[int, dict[int, Median]]:
    """One expert on the CPU, by how many threads compute it and by its tokens; each time another expert."""
    keys = cycle(range(store.keys))
    states = _States(hidden, dtype, torch.device("cpu"))
    found = {}
    for count in threads:
        with _threads(count):
            found[count] = _by_tokens(module, states, lambda: store.layout.views(store.blob(next(keys))))
    return found


def memory_bandwidth(device: torch.device) -> float:
    """Bytes per second that a device reads and writes in a large copy of its own memory."""
    source = torch.ones(_LARGE, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _LARGE * 1e9 / _reading(lambda: target.copy_(source), device).ns


def arithmetic(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second in a square matrix product."""
    size = _SQUARE if device.type == "cpu" else 8 * _SQUARE
    left, right = (torch.full((size, size), 0.01, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 * 1e9 / _reading(lambda: left @ right, device).ns


def thread_counts() -> list[int]:
    """Powers of two up to the threads that torch may use."""
    most = torch.get_num_threads()
    return [count for count in (2**power for power in range(most.bit_length())) if count <= most]


class _States(NamedTuple):
    """What experts get to compute with."""

    hidden: int
    dtype: torch.dtype
    device: torch.device

    def of(self, tokens: int) -> torch.Tensor:
        return torch.full((tokens, self.hidden), 0.01, dtype=self.dtype, device=self.device)


def _by_tokens(module: Any, states: _States, weights: Callable[[], Mapping[str, torch.Tensor]]) -> dict[int, Median]:
    found = {}
    for tokens in TOKENS:
        rows = states.of(tokens)
        found[tokens] = _reading(partial(_compute, module, rows, weights), states.device)
    return found


def _compute(module: Any, rows: torch.Tensor, weights: Callable[[], Mapping[str, torch.Tensor]]) -> None:
    expert_output(module, rows, weights())


@torch.inference_mode()
def _reading(work: Callable[[], object], device: torch.device) -> Median:
    """Of one call of `work`: under CUDA of several at once, since waiting for the device takes its time, too."""
    cuda = device.type == "cuda"
    times = _AT_ONCE if cuda else 1
    readings = []
    for number in range(READINGS + 3):
        start = time.perf_counter_ns()
        for _ in range(times):
            work()
        if cuda:
            torch.cuda.synchronize(device)
        if number >= 3:  # The first ones warm up.
            readings.append((time.perf_counter_ns() - start) / times)
    return Median.of(readings)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
