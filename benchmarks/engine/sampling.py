"""What it costs to choose tokens, per window, at a vocabulary of today's models.

    python -m benchmarks.engine.sampling

A window of four drafted tokens is verified, one thread, float32 logits on the CPU, all tokens accepted or not as they
come.  `reference` is the rule of plain speculative sampling: softmax in float64 over all tokens of every row, and
nothing left out.  Cases take turns, and each one's figure is the median of its rounds: the machine is shared, so quote
the ratios to the reference, not the milliseconds.  They go to benchmarks/results/sampling.json.  The aim: top-k, top-p
and penalties together cost no more than the reference.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Final

import torch

from benchmarks.files import RESULTS, machine, write_json
from engine.decoding.sampler import Proposal, Sampler
from engine.decoding.sampling import Sampling
from engine.decoding.warper import History

RESULT: Final = RESULTS / "sampling.json"
VOCABULARY, ROWS, ROUNDS = 151_936, 5, 41
CONTEXT, OUTPUT = 3_000, 1_000
"""Tokens of the request's prompt and output, for penalties."""
FULL: Final = Sampling(0.7, 20, 0.8, repetition_penalty=1.05, presence_penalty=0.5, frequency_penalty=0.1, seed=1)
CASES: Final = {
    "greedy": Sampling(),
    "temperature": Sampling(0.7, seed=1),
    "temperature, top-k": Sampling(0.7, 20, seed=1),
    "temperature, top-k, top-p": Sampling(0.7, 20, 0.8, seed=1),
    "temperature, top-k, top-p, penalties": FULL,
    "temperature, penalties": FULL.override(top_k=0, top_p=1.0),
    "temperature, min-p": Sampling(0.7, min_p=0.05, seed=1),
    "temperature, top-p": Sampling(0.7, top_p=0.8, seed=1),
}
REFERENCE: Final = "reference"


class Plain:
    """Speculative sampling with a temperature, written out."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._generator = torch.Generator().manual_seed(1)

    def verify(self, drafted: list[int], draft: list[torch.Tensor], logits: torch.Tensor) -> list[int]:
        """The tokens put out."""
        target = self.distribution(logits)
        for place, (token, q) in enumerate(zip(drafted, draft, strict=True)):
            p = target[place]
            if self._number() * float(q[token]) >= float(p[token]):
                return [*drafted[:place], self._draw((p - q).clamp_(min=0))]
        return [*drafted, self._draw(target[-1])]

    def distribution(self, logits: torch.Tensor) -> torch.Tensor:
        """Of every row."""
        wide = logits.to("cpu", torch.float64)
        return ((wide - wide.amax(-1, keepdim=True)) / self._temperature).softmax(-1)

    def _number(self) -> float:
        return torch.rand((), generator=self._generator, dtype=torch.float64).item()

    def _draw(self, weights: torch.Tensor) -> int:
        sums = weights.cumsum(0)
        return int(torch.searchsorted(sums, self._number() * sums[-1], right=True))


def request() -> History:
    """Tokens as they come in text: few often, many seldom."""
    rng = random.Random(1)
    tokens = [int(VOCABULARY ** rng.random()) for _ in range(CONTEXT)]
    return History(tokens, CONTEXT - OUTPUT)


def cases(logits: torch.Tensor) -> dict[str, Callable[[], object]]:
    """What is timed, by name.  The draft's logits are the target's, so that most of its tokens stand."""
    plain, history = Plain(0.7), request()
    q = list(plain.distribution(logits[:-1]))
    likeliest = logits[:-1].argmax(-1).tolist()
    found: dict[str, Callable[[], object]] = {REFERENCE: lambda: plain.verify(likeliest, q, logits)}
    for name, sampling in CASES.items():
        sampler = Sampler(sampling, VOCABULARY)
        proposals: list[Proposal] = []
        for row in logits[:-1]:
            proposals.append(sampler.propose(row, history.then([each.token for each in proposals])))
        drafted, drawn_from = [each.token for each in proposals], [each.distribution for each in proposals]
        found[name] = partial(sampler.verify, drafted, drawn_from, logits, history)
    return found


def main() -> None:
    torch.set_num_threads(1)
    logits = 3 * torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(1))
    # As of a model: some tokens stand out.
    logits[:, :40] += torch.linspace(16, 4, 40)
    timed: dict[str, list[float]] = {}
    todo = cases(logits)
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for name, verify in todo.items():
                start = time.perf_counter()
                verify()
                timed.setdefault(name, []).append(time.perf_counter() - start)
    medians = {name: median(seconds) for name, seconds in timed.items()}
    measured = [
        {"case": name, "ms": round(taken * 1e3, 2), "ratio": round(taken / medians[REFERENCE], 3)}
        for name, taken in medians.items()
    ]
    for line in measured:
        print(f"{line['case']:38} {line['ms']:8} ms {line['ratio']:8}")
    write_json(
        RESULT,
        {
            "what": "verifying a window, medians; ratio: to plain speculative sampling in the same run",
            "machine": machine("torch"),
            "vocabulary": VOCABULARY,
            "rows": ROWS,
            "rounds": ROUNDS,
            "context": CONTEXT,
            "measured": measured,
        },
    )


if __name__ == "__main__":
    main()
