"""Record what a real model routes, then ask the simulator how other policies would have done.

    python examples/record_and_replay.py

The engine runs the bundled pair and takes notes; the trace made of them is replayed on an RTX 4090's profile,
under policies that did not run.  `spmoe.trace.writer.write_trace` would keep it as a file.
"""

import sim
from engine import Engine
from engine.checkpoints.bundled import bundled_pair
from engine.cli.trace_output import trace_of

PROMPTS = ["def read_lines(path):", "class Queue:"]
POLICIES = ["on-demand.lru", "spmoe.per-layer", "spmoe.foresight", "clairvoyant"]


def main() -> None:
    target, draft = bundled_pair()
    with Engine.from_pretrained(target, draft, record=True, policy="on-demand.lru", device="cpu") as engine:
        for prompt in PROMPTS:
            engine.generate(prompt, max_new_tokens=32)
        engine.finish()
        trace = trace_of(engine)
    print(f"{trace.header.tokens} tokens of {trace.header.model.name}: {trace.header.source.how}")
    print(sim.replay(trace, POLICIES, bits=32, cache=0.5).table()[["tpot_ms", "loads_per_token", "hit_rate"]].round(3))


if __name__ == "__main__":
    main()
