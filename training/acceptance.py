"""How many drafted tokens stand when the engine runs the pair."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from engine.engine import Engine
from engine.options import GAMMA

PROMPTS = 24
PREFIXES = 96
"""Of held-out text: requests that the engine writes on from, and places where it drafts one round."""


class Acceptance(NamedTuple):
    """Accepted / drafted tokens: of greedy and of sampled (temperature 1) requests, and of the first rounds behind
    prefixes of real text, greedy, where the models cannot have talked themselves into a loop."""

    greedy: float
    sampled: float
    prefixes: float


def acceptance(target: Path, draft: Path, windows: torch.Tensor, seed: int) -> Acceptance:
    """Runs the pair with half of the experts in slots; prompts are the first quarter of held-out windows [.., n + 1],
    another half is written behind them."""
    context = windows.shape[1] - 1
    prompts = [row[: context // 4].tolist() for row in spread(windows, PROMPTS)]
    rates = []
    for temperature in (0.0, 1.0):
        with Engine.from_pretrained(target, draft, gamma=GAMMA, cache=0.5, device="cpu", dtype="float32") as engine:
            for number, prompt in enumerate(prompts):
                engine.generate(prompt, context // 2, temperature=temperature, seed=seed + number, ignore_eos=True)
            engine.finish()
            rates.append(engine.transfers().acceptance or 0.0)
    prefixes = [row[: context // 2].tolist() for row in spread(windows, PREFIXES)]
    accepted = 0
    with Engine.from_pretrained(target, draft, gamma=GAMMA, cache=0.5, device="cpu", dtype="float32") as engine:
        for prefix in prefixes:
            # A token behind the prompt, then a round of which all drafted tokens and one more find room.
            stream = engine.stream(prefix, GAMMA + 2, ignore_eos=True)
            next(stream)
            accepted += len(next(stream).tokens) - 1
            stream.close()  # type: ignore[attr-defined]
    return Acceptance(rates[0], rates[1], accepted / (GAMMA * len(prefixes)))


def spread(windows: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of the windows, evenly spaced; all where there are fewer."""
    return windows[:: max(1, len(windows) // count)][:count]
