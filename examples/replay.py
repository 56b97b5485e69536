"""Compare offloading policies on a routing trace.

    python examples/replay.py [TRACE]

replays the bundled trace of Mixtral-8x7B (synthetic) on an RTX 4090's profile with slots for half of the experts.
"""

import sys

import sim
from spmoe.trace.bundled import bundled_trace

POLICIES = ["on-demand.lru", "spmoe.paper", "spmoe.per-layer", "spmoe.foresight"]


def main(trace: str | None = None) -> None:
    found = sim.replay(trace or bundled_trace(), POLICIES, hardware="rtx-4090", cache=0.5)
    print(found.table()[["tpot_ms", "vs_bound", "loads_per_token", "hit_rate", "stall_fraction"]].round(2))
    print(f"bound: {found.bound.tpot_ms:.1f} ms per token, {found.bound.loads_per_token:.1f} loads")


if __name__ == "__main__":
    main(*sys.argv[1:])
