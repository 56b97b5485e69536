"""The engine's link beside bare copies of the same bytes, from the same pinned memory, in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.engine.link_speed import limits, seconds, through_link
from benchmarks.on_gpu.worker import Task
from engine.memory.copiers import Run, runs
from engine.memory.host_store import HostStore
from engine.memory.layout import Layout
from engine.memory.link import Link
from engine.memory.slot_buffer import SlotBuffer
from spmoe.policy.parts.io_plan import DEPTH
from spmoe.state.commands import Load, Purpose, Submit

MOST: int = 64
"""Batches that are copied per measurement."""


def link(task: Task) -> dict[str, Any]:
    """For each kind of batch, throughput both ways and the ratio, pair by pair; which way goes first alternates."""
    found = []
    for row_bytes, rows, neighbours in task.settings["batches"]:
        if found and time.monotonic() > task.until:
            break
        count = max(2, min(MOST, task.settings["bytes"] // (row_bytes * rows)))
        batches = [_batch(number, rows, neighbours) for number in range(count)]
        found.append({**_compare(task, row_bytes, 2 * rows, batches), "neighbours": neighbours})
    return {"depth": DEPTH, "pairs": task.settings["pairs"], "batches": found}


def _batch(number: int, rows: int, neighbours: bool) -> Submit:
    """Rows of the one or the other half; what are neighbours on the host alone is copied row by row."""
    first = number % 2 * rows
    places = range(rows) if neighbours else range(rows - 1, -1, -1)
    loads = tuple(Load(first + row, first + place, None) for row, place in enumerate(places))
    return Submit(number, Purpose.DEMAND, loads)


def _compare(task: Task, row_bytes: int, rows: int, batches: list[Submit]) -> dict[str, Any]:
    layout = Layout.of({"bytes": ((row_bytes,), torch.uint8)})
    store = HostStore(layout, rows, pin=task.device.type == "cuda")
    store.rows(0, rows).fill_(1)
    slots = SlotBuffer(layout, rows, task.device)
    copies = [run for batch in batches for run in runs(batch.loads)]
    size = sum(len(batch.loads) for batch in batches) * layout.size
    taken: dict[str, list[float]] = {"bare": [], "link": []}
    with Link(store, slots, DEPTH) as through:
        ways: dict[str, Callable[[], None]] = {
            "bare": lambda: bare_copies(store, slots, copies),
            "link": lambda: through_link(through, batches),
        }
        for way in ways:
            ways[way]()
        for pair in range(task.settings["pairs"]):
            for way in sorted(ways, reverse=pair % 2 == 1):
                taken[way].append(seconds(ways[way]))
    ratios = [bare / ours for bare, ours in zip(taken["bare"], taken["link"], strict=True)]
    return {
        "bytes": layout.size * len(batches[0].loads),
        "copies": len(runs(batches[0].loads)),
        "link_gb_per_s": round(size / 1e9 / median(taken["link"]), 3),
        "bare_gb_per_s": round(size / 1e9 / median(taken["bare"]), 3),
        "ratio": round(median(ratios), 4),
        "ratio_95_percent": [round(each, 4) for each in limits(ratios)],
    }


def bare_copies(store: HostStore, slots: SlotBuffer, copies: list[Run]) -> None:
    """Copy after copy on the current stream, then one wait for all."""
    for run in copies:
        slots.rows(run.slot, run.length).copy_(store.rows(run.key, run.length), non_blocking=True)
    if slots.device.type == "cuda":
        torch.cuda.current_stream(slots.device).synchronize()
