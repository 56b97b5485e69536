"""How fast the link is: transfers of many sizes through it, alone and beside a device that computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any, Final, NamedTuple

import torch

from engine.memory.host_store import HostStore
from engine.memory.layout import ALIGNMENT, Layout
from engine.memory.link import Link
from engine.memory.slot_buffer import SlotBuffer
from engine.profiling.fit import Line, Median
from spmoe.state.commands import Load, Purpose, Submit

READINGS: Final = 15
_SMALLEST: Final = 64 * 1024
_CACHED: Final = 64 * 2**20
"""Bytes: transfers go through more than that in turn, as caches hold less."""
_LARGEST: Final = 64
"""Experts, in the largest transfer, at most."""


class LinkTimes(NamedTuple):
    """Transfers by their bytes; `beside` is the same while the device computes, and `slowed` by what factor that makes
    the computation last longer.  `copy_ns` is what a second copy in the same submission adds."""

    alone: dict[int, Median]
    beside: dict[int, Median]
    slowed: float
    copy_ns: float

    @property
    def line(self) -> Line:
        """Latency (ns) and ns per byte of transfers alone."""
        return Line.through({float(size): each for size, each in self.alone.items()})

    def to_json(self) -> dict[str, Any]:
        """Readings, and by how much each size is off the line."""
        line = self.line
        found = []
        for (size, alone), off in zip(self.alone.items(), line.residuals, strict=True):
            point = {"bytes": size, **alone.to_json(), "off_the_line": round(off / alone.ns, 4)}
            found.append({**point, "beside_compute": self.beside[size].to_json()})
        return {"transfers": found, "compute_beside_transfers": round(self.slowed, 4)}


def time_link(
    expert_bytes: int,
    most: int,
    device: torch.device,
    busy: Callable[[], object],
    gbps: float | None = None,
    latency_ns: int = 0,
) -> LinkTimes:
    """Times transfers of up to `most` bytes, in rows no larger than an expert; `busy` is a computation of some time.

    `gbps` and `latency_ns` as in `Link`.
    """
    alone, beside, together, apart = {}, {}, 0, 0
    for size in sizes(expert_bytes, most):
        count = max(1, _CACHED // size)
        with _Bed(size, count, device, gbps, latency_ns) as bed:
            rows = cycle(range(count))
            alone[size] = Median.of([bed.move((next(rows),)) for _ in range(READINGS)])
            readings = []
            for _ in range(READINGS):
                apart += _ns(busy)
                moved, took = bed.move_beside((next(rows),), busy)
                readings.append(moved)
                together += took
            beside[size] = Median.of(readings)
    piece = max(ALIGNMENT, expert_bytes // 2 // ALIGNMENT * ALIGNMENT)
    with _Bed(piece, 3, device, gbps, latency_ns) as bed:
        one = Median.of([bed.move((0, 1)) for _ in range(READINGS)])
        two = Median.of([bed.move((0, 2)) for _ in range(READINGS)])
    return LinkTimes(alone, beside, together / apart, max(0.0, two.ns - one.ns))


def sizes(expert_bytes: int, most: int) -> list[int]:
    """Powers of two of the smallest size up to an expert, and experts up to so many bytes."""
    found = []
    size = _SMALLEST
    while size < expert_bytes:
        found.append(size)
        size *= 4
    experts = 1
    while experts <= _LARGEST and (experts == 1 or experts * expert_bytes <= most):
        found.append(experts * expert_bytes)
        experts *= 4
    return found


class _Bed:
    """A link between rows of one size."""

    def __init__(self, size: int, rows: int, device: torch.device, gbps: float | None, latency_ns: int) -> None:
        layout = Layout.of({"bytes": ((size,), torch.uint8)})
        store = HostStore(layout, rows, pin=device.type == "cuda")
        store.rows(0, rows).fill_(1)
        self._link = Link(store, SlotBuffer(layout, rows, device), 1, gbps, latency_ns=latency_ns)
        self._rows = rows
        self._batch = 0

    def __enter__(self) -> _Bed:
        for row in range(self._rows):
            self.move((row,))
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    def move(self, rows: Sequence[int]) -> int:
        """Nanoseconds from the submission of these rows to the end of their transfer."""
        began = self._submit(rows)
        return self._arrived() - began

    def move_beside(self, rows: Sequence[int], busy: Callable[[], object]) -> tuple[int, int]:
        """The same while `busy` computes, and how long that took."""
        began = self._submit(rows)
        took = _ns(busy)
        return self._arrived() - began, took

    def _submit(self, rows: Sequence[int]) -> int:
        submit = Submit(self._batch, Purpose.DEMAND, tuple(Load(row, row, None) for row in rows))
        self._batch += 1
        began = self._link.now
        self._link.submit(submit)
        return began

    def _arrived(self) -> int:
        completion = self._link.wait()
        if completion.error is not None:
            raise completion.error
        return completion.ended_ns


def _ns(busy: Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    busy()
    return time.perf_counter_ns() - start
