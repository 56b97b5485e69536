"""How fast the engine's link copies, beside a bare loop that copies the same bytes in the same run.

    python -m benchmarks.engine.link_speed [--device cuda]

Each pair copies the same batches twice: by a loop of copies on the calling thread (under CUDA enqueued one after the
other, then waited for), and through the link, two batches submitted at a time.  Which of the two goes first alternates.
The ratio is the link's throughput over the loop's.  On the CPU both copy from host memory to host memory: it says what
the link costs, not how fast a PCIe link is.  Ratios hold on a shared machine, seconds do not: quote the ratios.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from math import comb
from statistics import median
from typing import Any

import torch

from benchmarks.files import RESULTS, machine, write_json
from engine.memory.host_store import HostStore
from engine.memory.layout import Layout
from engine.memory.link import Link
from engine.memory.slot_buffer import SlotBuffer
from spmoe.policy.parts.io_plan import DEPTH
from spmoe.state.commands import Load, Purpose, Submit

MIB = 2**20
EXPERT_MIB = 16
KEYS, SLOTS = 64, 32
PAIRS = 121
LOADS = 32
"""Experts that are copied per measurement."""


def batches(size: int, neighbours: bool) -> list[Submit]:
    """`LOADS` loads in batches of `size`; neighbours on host and device, or scattered on both."""
    rng = random.Random(size)
    found = []
    for batch in range(LOADS // size):
        if neighbours:
            key, slot = rng.randrange(KEYS - size + 1), rng.randrange(SLOTS - size + 1)
            pairs = [(key + i, slot + i) for i in range(size)]
        else:
            pairs = list(zip(rng.sample(range(KEYS), size), rng.sample(range(SLOTS), size), strict=True))
        found.append(Submit(batch, Purpose.DEMAND, tuple(Load(key, slot, None) for key, slot in pairs)))
    return found


def bare_loop(store: HostStore, slots: SlotBuffer, work: list[Submit]) -> None:
    """Copy after copy, one per load."""
    for batch in work:
        for load in batch.loads:
            slots.rows(load.slot, 1).copy_(store.rows(load.key, 1), non_blocking=True)
    if slots.device.type == "cuda":
        torch.cuda.current_stream(slots.device).synchronize()


def through_link(link: Link, work: list[Submit]) -> None:
    """The same through the link, as many at a time as a scheduler submits."""
    waiting = 0
    for batch in work:
        if waiting == link.depth:
            require(link)
            waiting -= 1
        link.submit(batch)
        waiting += 1
    for _ in range(waiting):
        require(link)


def require(link: Link) -> None:
    """The next batch has to arrive."""
    error = link.wait().error
    if error is not None:
        raise error


def seconds(action: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare(store: HostStore, slots: SlotBuffer, link: Link, work: list[Submit]) -> dict[str, Any]:
    """Throughput of the link over that of the bare loop, pair by pair."""
    size = sum(len(batch.loads) for batch in work) * store.layout.size
    ways = {"loop": lambda: bare_loop(store, slots, work), "link": lambda: through_link(link, work)}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways:
        ways[way]()
    for pair in range(PAIRS):
        for way in sorted(ways, reverse=pair % 2 == 1):
            taken[way].append(seconds(ways[way]))
    ratios = [loop / link for loop, link in zip(taken["loop"], taken["link"], strict=True)]
    return {
        "bytes_per_batch": size // len(work),
        "ratio": {
            "median": median(ratios),
            "median_95_percent": limits(ratios),
            "min": min(ratios),
            "max": max(ratios),
        },
        "link_gb_per_s": size / 1e9 / median(taken["link"]),
        "loop_gb_per_s": size / 1e9 / median(taken["loop"]),
    }


def limits(values: list[float]) -> tuple[float, float]:
    """The two values that hold the median between them with 95 % confidence, whatever the distribution (sign test)."""
    ordered, beyond, rank = sorted(values), 0, 0
    while 2 * (beyond + comb(len(values), rank)) <= 0.05 * 2 ** len(values):
        beyond += comb(len(values), rank)
        rank += 1
    return ordered[rank - 1], ordered[-rank]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device = parser.parse_args().device
    torch.set_num_threads(1)
    layout = Layout.of({"weights": ((EXPERT_MIB * MIB,), torch.uint8)})
    store = HostStore(layout, KEYS, pin=device == "cuda")
    store.rows(0, KEYS).fill_(1)
    slots = SlotBuffer(layout, SLOTS, device)
    with Link(store, slots, DEPTH) as link:
        found = {
            "neighbours, 8 experts a batch": compare(store, slots, link, batches(8, True)),
            "scattered, 8 experts a batch": compare(store, slots, link, batches(8, False)),
            "one expert a batch": compare(store, slots, link, batches(1, False)),
        }
    where = "host memory to host memory (CPU)" if device == "cpu" else f"host to {torch.cuda.get_device_name()}"
    result = {
        "command": f"python -m benchmarks.engine.link_speed --device {device}",
        "machine": machine("torch"),
        "measured_on": where,
        "expert_bytes": layout.size,
        "depth": DEPTH,
        "pairs": PAIRS,
        "link_over_bare_loop": found,
    }
    write_json(RESULTS / f"link_speed_{device}.json", result, indent=2)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
