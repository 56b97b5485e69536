"""The engine with every expert resident, beside transformers' own assisted generation in the same run.

    python -m benchmarks.engine.speed [--device cuda] [--policy NAME ...]

Same models (random, labelled so), threads, dtype, drafted tokens per round and prompt; transformers drafts without a
confidence threshold, on a constant schedule, with "eager" and with "grouped_mm" experts, of which the better counts.
Both put out the same tokens.  TPOT is the time from the first piece of output to the last, over the tokens that came in
it.  Runs are interleaved, in alternating order; the ratio of each round is TPOT of the engine over that of the better.
Its mean and 95 % interval (Student's t on logarithms) go to benchmarks/results/engine_speed_DEVICE.json.  Ratios hold
on a shared machine, milliseconds do not: quote the ratios.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import transformers
from scipy.stats import t as student
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from benchmarks.engine.random_pair import PairShape, write_random_pair
from benchmarks.files import RESULTS, machine, write_json
from engine.engine import Engine

SHAPE = PairShape(layers=8, hidden=256, experts=8, expert_width=512, dense_width=512)
ROUNDS = 10
GAMMA = 4
NEW_TOKENS = 128
PROMPT = list(range(60, 92))
WARM_UP = list(range(256)) * 2
IMPLEMENTATIONS = ("eager", "grouped_mm")


class Watch(BaseStreamer):
    """Notes when tokens come, and how many."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.seen.append((time.perf_counter(), value.numel()))

    def end(self) -> None:
        pass

    def tpot_ms(self) -> float:
        """Of all that came after the first output; the prompt is put first."""
        output = self.seen[1:]
        return (output[-1][0] - output[0][0]) * 1e3 / sum(count for _, count in output[1:])


def assisted(target: Any, draft: Any, implementation: str) -> tuple[float, list[int]]:
    """TPOT (ms) of transformers' assisted generation, and its tokens."""
    target.set_experts_implementation(implementation)
    watch = Watch()
    prompt = torch.tensor([PROMPT], device=target.device)
    output = target.generate(
        prompt,
        assistant_model=draft,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        streamer=watch,
    )
    return watch.tpot_ms(), output[0, len(PROMPT) :].tolist()


def offloaded(engine: Engine) -> tuple[float, list[int]]:
    """TPOT (ms) of the engine, and its tokens."""
    seen: list[tuple[float, int]] = []
    tokens: list[int] = []
    for piece in engine.stream(PROMPT, NEW_TOKENS, ignore_eos=True):
        seen.append((time.perf_counter(), len(piece.tokens)))
        tokens += piece.tokens
    return (seen[-1][0] - seen[0][0]) * 1e3 / sum(count for _, count in seen[1:]), tokens


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Mean of ratios and its 95 % interval, on logarithms."""
    logs = [math.log(ratio) for ratio in ratios]
    half = float(student.ppf(0.975, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean(logs)), math.exp(mean(logs) - half), math.exp(mean(logs) + half)


def measure(policy: str, device: str, folders: tuple[Path, Path]) -> dict[str, Any]:
    """Ten rounds of everything."""
    dtype = torch.float32
    target, draft = (AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device) for folder in folders)
    target.generation_config.eos_token_id = draft.generation_config.eos_token_id = None
    draft.generation_config.num_assistant_tokens = GAMMA
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    ratios, ours, theirs, same = [], [], [], True
    options = {"cache": 1.0, "gamma": GAMMA, "device": device, "dtype": "float32", "policy": policy}
    with Engine.from_pretrained(*folders, **options) as engine:
        engine.generate(WARM_UP, 1)  # So many different tokens need every expert.
        for number in range(ROUNDS + 1):
            if number % 2:
                mine, tokens = offloaded(engine)
                rivals = [assisted(target, draft, each) for each in IMPLEMENTATIONS]
            else:
                rivals = [assisted(target, draft, each) for each in IMPLEMENTATIONS]
                mine, tokens = offloaded(engine)
            same &= rivals[0][1] == tokens
            if number:  # The first round warms up.
                ours.append(mine)
                theirs.append([each for each, _ in rivals])
        metrics, transfers = engine.metrics(), engine.transfers()
    means = [mean(column) for column in zip(*theirs, strict=True)]
    better = means.index(min(means))
    ratios = [mine / row[better] for mine, row in zip(ours, theirs, strict=True)]
    middle, low, high = interval(ratios)
    return {
        "policy": policy,
        "ratio": round(middle, 3),
        "interval_95": [round(low, 3), round(high, 3)],
        "ratios": [round(each, 3) for each in ratios],
        "tpot_ms": round(mean(ours), 3),
        "better": IMPLEMENTATIONS[better],
        "assisted_ms": {name: round(each, 3) for name, each in zip(IMPLEMENTATIONS, means, strict=True)},
        "same_tokens_as_eager": same,
        "acceptance": transfers.acceptance,
        "hit_rate": metrics.hit_rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--policy", nargs="+", default=["spmoe.per-layer", "on-demand.lru"])
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if options.device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folders = write_random_pair(Path(folder), SHAPE)
        measured = [measure(policy, options.device, folders) for policy in options.policy]
    document = {
        "what": "TPOT of the engine, everything resident, over transformers' assisted generation; random weights",
        "machine": machine("torch", "transformers"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "gamma": GAMMA,
        "shape": SHAPE._asdict(),
        "measured": measured,
    }
    name = options.device.partition(":")[0]
    write_json(RESULTS / f"engine_speed_{name}.json", document, indent=2)
    for row in measured:
        print(f"{row['policy']}: {row['ratio']} ({row['interval_95'][0]}-{row['interval_95'][1]}) of {row['better']}")


if __name__ == "__main__":
    main()
