"""The same requests by plain transformers: what the engine's greedy output has to be equal to.

The whole model in memory, token by token, without a draft.  Tokens that the engine verifies go through the model in
blocks, and so in another order of sums: where two tokens are all but equally likely, rounding may choose the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from engine.checkpoints.model_pair import load_whole
from engine.checkpoints.refusing import quiet
from engine.decoding.sampling import Sampling
from engine.memory.out_of_memory import oom_as_input_error
from engine.plan import Plan
from spmoe.errors import InputError

ROUNDING: Final[Mapping[torch.dtype, float]] = {torch.float64: 0.0, torch.float32: 1e-4}
"""How far two logits may lie apart where rounding chose between them.  In float32 blocks move logits by 5e-6 or so; in
16 bits by so much that nothing follows from a difference."""


class Request(NamedTuple):
    """A prompt, and what the engine put out behind it, in tokens."""

    prompt: Sequence[int]
    output: Sequence[int]


class Difference(NamedTuple):
    """The first token, counted from 1, of a request, counted from 1, for which plain decoding has another.

    `gap` is by how much its logit is below that of plain decoding's own.
    """

    request: int
    token: int
    gap: float


class Comparison(NamedTuple):
    """What came of it: requests and their tokens, and where they differ."""

    requests: int
    tokens: int
    differences: tuple[Difference, ...]

    def explain(self) -> str:
        """In words."""
        of_all = f" for {self.requests:,} prompts" if self.requests > 1 else ""
        if not self.differences:
            tokens = "token" if self.tokens == 1 else f"{self.tokens:,} tokens"
            return f"the same {tokens}{of_all} from plain transformers"
        request, token, gap = max(self.differences, key=lambda each: each.gap)
        where = f"token {token} of prompt {request} on" if self.requests > 1 else f"token {token} on"
        widest = "" if len(self.differences) == 1 else f", widest in {len(self.differences):,} prompts"
        return f"differs from {where}: there plain's logits of the two tokens are {gap:.1g} apart{widest}"

    def to_json(self) -> dict[str, Any]:
        """As in `config.engine.plain` of the results."""
        return {
            "requests": self.requests,
            "tokens": self.tokens,
            "differences": [each._asdict() for each in self.differences],
        }


def check_comparable(plan: Plan, sampling: Sampling) -> None:
    """InputError unless the run should put out what plain decoding does: greedy, and under a lossless policy."""
    if sampling != Sampling(seed=sampling.seed):
        raise InputError(f"--against-plain: expected greedy decoding, got {sampling.explain()}; --greedy asks for it")
    if not plan.recipe.lossless:
        raise InputError(f"--against-plain: expected a lossless policy, got {plan.recipe.name}")


def compare(plan: Plan, requests: Sequence[Request], new_tokens: int, ends: AbstractSet[int]) -> Comparison:
    """Generates up to `new_tokens` behind each prompt, to the first of `ends`, with the model of `plan` as transformers
    runs it ("eager" experts), same number format, same device, and compares.

    The whole model has to fit: call it when the engine is closed.  Raises InputError where it does not, or where the
    tokens differ by more than rounding.
    """
    folder = plan.blueprint.checkpoint.folder
    with oom_as_input_error(plan.device, "--against-plain loads the whole model there"), quiet():
        model = load_whole(folder, plan.dtype, plan.device, "eager")
        # Nothing but this counts, whatever stands in the model's generation_config.json.
        model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=new_tokens, eos_token_id=sorted(ends) or None, use_cache=True
        )
        found = [_first_difference(model, number, each) for number, each in enumerate(requests, start=1)]
    differences = tuple(each for each in found if each is not None)
    _judge(differences, plan.dtype)
    return Comparison(len(requests), sum(len(each.output) for each in requests), differences)


class _Gaps(LogitsProcessor):
    """Changes nothing, and notes by how much the logits of given tokens are below the best."""

    def __init__(self, prompt: int, tokens: Sequence[int]) -> None:
        """Of `tokens` behind so many of the prompt."""
        self._prompt = prompt
        self._tokens = tokens
        self.seen: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        place = input_ids.shape[1] - self._prompt
        if place < len(self._tokens):
            self.seen.append(float(scores[0].max() - scores[0, self._tokens[place]]))
        return scores


@torch.inference_mode()
def _first_difference(model: Any, number: int, request: Request) -> Difference | None:
    inputs = torch.tensor([list(request.prompt)], device=model.device)
    gaps = _Gaps(len(request.prompt), request.output)
    sequence = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), logits_processor=LogitsProcessorList([gaps])
    )
    plain: list[int] = sequence[0, len(request.prompt) :].tolist()
    if plain == list(request.output):
        return None
    place = next(
        (place for place, both in enumerate(zip(request.output, plain, strict=False)) if both[0] != both[1]), None
    )
    if place is None:  # One ends where the other goes on.
        return Difference(number, min(len(plain), len(request.output)) + 1, math.inf)
    return Difference(number, place + 1, gaps.seen[place])


def _judge(differences: Iterable[Difference], dtype: torch.dtype) -> None:
    """InputError for the first that rounding does not explain."""
    for request, token, gap in differences:
        if gap == math.inf or gap > ROUNDING.get(dtype, math.inf):
            apart = (
                "one of the two ends" if gap == math.inf else f"plain's logits of the two tokens are {gap:.2g} apart"
            )
            kind = str(dtype).removeprefix("torch.")
            raise InputError(
                f"prompt {request}: differs from plain transformers from token {token} on, and not by rounding: there "
                f"{apart} in {kind}"
            )
