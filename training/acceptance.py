"""How many drafted tokens stand when the engine runs the pair."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from engine.engine import Engine
from spmoe.run.options import GAMMA
from training.likelihood import spread

PROMPTS = 24
PREFIXES = 192
"""Of held-out text: requests that the engine writes on from, and places where it drafts one round."""


class Rate(NamedTuple):
    """`share`: accepted / drafted tokens.  `error`: its standard error over requests, None where there is but one."""

    share: float
    error: float | None
    drafted: int


class Acceptance(NamedTuple):
    """Of greedy and of sampled (temperature 1) requests, and of the first rounds behind prefixes of real text, greedy,
    where the models cannot have talked themselves into a loop."""

    greedy: Rate
    sampled: Rate
    prefixes: Rate


def acceptance(target: Path, draft: Path, windows: torch.Tensor, seed: int) -> Acceptance:
    """Runs the pair with half of the experts in slots; prompts are the first quarter of held-out windows [.., n + 1],
    another half is written behind them.  A prefix is half a window."""
    context = windows.shape[1] - 1
    prompts = [row[: context // 4].tolist() for row in spread(windows, PROMPTS)]
    prefixes = [row[: context // 2].tolist() for row in spread(windows, PREFIXES)]
    with Engine.from_pretrained(target, draft, gamma=GAMMA, cache=0.5, device="cpu", dtype="float32") as engine:
        greedy = [_run(engine, prompt, context // 2) for prompt in prompts]
        sampled = [_run(engine, prompt, context // 2, seed + number) for number, prompt in enumerate(prompts)]
        # Two pieces: a token behind the prompt, then a round, of which all that is drafted and one more find room.
        first = [_run(engine, prefix, GAMMA + 2, pieces=2) for prefix in prefixes]
    return Acceptance(rate(greedy), rate(sampled), rate(first))


def _run(
    engine: Engine, prompt: list[int], length: int, seed: int | None = None, pieces: int | None = None
) -> tuple[int, int]:
    """Accepted and drafted tokens of a request, which is sampled where there is a seed."""
    before = engine.transfers()
    temperature = 0.0 if seed is None else 1.0
    stream = engine.stream(prompt, length, temperature=temperature, seed=seed, ignore_eos=True)
    deque(islice(stream, pieces), maxlen=0)
    stream.close()  # type: ignore[attr-defined]
    after = engine.transfers()
    return after.accepted - before.accepted, after.drafted - before.drafted


def rate(counts: Sequence[tuple[int, int]]) -> Rate:
    """Of (accepted, drafted) tokens of each request; the error is that of a ratio of means over requests."""
    accepted, drafted = (sum(each) for each in zip(*counts, strict=True))
    share = accepted / drafted
    squares = sum((one - share * of) ** 2 for one, of in counts)
    number = len(counts)
    return Rate(share, math.sqrt(squares * number / (number - 1)) / drafted if number > 1 else None, drafted)
