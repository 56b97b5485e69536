"""Targets with drafts that guess well, badly or always, what plain decoding makes of them, and cases to try."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from engine.checkpoints.refusing import quiet
from engine.cli.trace_output import trace_of
from engine.decoding.draft_model import Poll
from engine.decoding.drafter import Drafter
from engine.decoding.forward import Forward
from engine.decoding.sampler import Proposal, Sampler, Verdict
from engine.decoding.warper import History
from engine.engine import Engine
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import RECIPES
from spmoe.trace.writer import write_trace
from tests.engine.tiny import FAMILIES, eager_model, tiny_config, tiny_model, tokens
from tests.soak import times

LOSSLESS: Final = tuple(recipe for recipe in RECIPES.values() if recipe.lossless)
DRAFTS: Final = ("none", "random", "noisy", "itself")
"""Which draft: none; a dense one with random weights, that seldom guesses a token; the target with noise on its
weights, that guesses some; the target itself, that guesses all."""
NOISE: Final = 0.1
"""Of the noisy draft, relative to the spread of the weights."""
_KNOWING: Final = frozenset({"popularity", "hindsight", "future"})
_ROOM: Final = (0.0, 0.0, 0.15, 0.4, 0.8, 1.0)
_PROMPTS: Final = (1, 2, 5, 11, 21, 40)
_NEW: Final = (2, 9, 16, 24, 33)


class Case(NamedTuple):
    """One run to try.

    `room` is where between the fewest slots that the policy works with (0) and one for every expert (1); `gamma` goes
    with a draft; `prompt` and `new` are tokens; `ends` says whether the end-of-sequence token ends it.
    """

    recipe: Recipe
    family: str
    seed: int
    draft: str
    gamma: int
    room: float
    prompt: int
    new: int
    ends: bool

    @property
    def name(self) -> str:
        """All of it, for the names of tests."""
        head = f"{self.recipe.name}-{self.family}-{self.seed}-{self.draft}-gamma{self.gamma}"
        return f"{head}-room{self.room:g}-{self.prompt}+{self.new}{'' if self.ends else '-endless'}"

    @property
    def learns(self) -> bool:
        """Whether the policy needs a trace of an earlier run."""
        return bool(self.recipe.needs & _KNOWING)

    @property
    def slots(self) -> int:
        """How many slots."""
        chosen = FAMILIES[self.family]
        least = self.recipe.placement.least(chosen)
        return least + round(self.room * (chosen.layers * chosen.experts - least))


def draw_cases(recipes: Sequence[Recipe], each: int, seed: int, drafts: Sequence[str] = DRAFTS) -> list[Case]:
    """`each` cases for every recipe, always the same ones for a `seed`.

    Whatever there is to choose comes up equally often, in an order of its own: a Latin hypercube.
    """
    rng = random.Random(seed)
    count = each * len(recipes)

    def deck(values: Sequence[Any]) -> list[Any]:
        cards = [*values] * -(-count // len(values))
        rng.shuffle(cards)
        return cards[:count]

    choices = (tuple(FAMILIES), range(times(4)), drafts, range(1, 9), _ROOM, _PROMPTS, _NEW, (True, False))
    found = []
    for number, chosen in enumerate(zip(*map(deck, choices), strict=True)):
        case = Case(recipes[number // each], *chosen)
        # A trace needs a decoded token, and a draft that is always right is not so behind the end.
        found.append(case._replace(ends=case.ends and not case.learns and case.draft != "itself"))
    return found


class Plain(NamedTuple):
    """What plain decoding puts out, and by how much each token's logit leads the next best."""

    tokens: list[int]
    margins: list[float]


class Ran(NamedTuple):
    """What the engine put out, and what became of drafted tokens."""

    tokens: list[int]
    drafted: int
    accepted: int


@dataclass
class Pairs:
    """Checkpoints below `folder`, each written once, and their models as transformers runs them."""

    folder: Path
    _eager: dict[tuple[Path, torch.dtype], Any] = field(default_factory=dict)
    _traces: int = 0

    def target(self, family: str, seed: int = 0, **options: Any) -> Path:
        """A random model; `options` of its configuration."""
        return self._saved(_name(family, seed, options), partial(tiny_model, family, seed, **options))

    def draft(self, kind: str, family: str, seed: int = 0, **options: Any) -> Path | None:
        """One of `DRAFTS` for that target."""
        if kind == "none":
            return None
        if kind == "itself":
            return self.target(family, seed, **options)
        make = partial(_noisy if kind == "noisy" else _dense, family, seed, **options)
        return self._saved(f"{_name(family, seed, options)}-{kind}", make)

    def eager(self, folder: Path, dtype: torch.dtype) -> Any:
        """The reference."""
        if (folder, dtype) not in self._eager:
            with quiet():
                self._eager[folder, dtype] = eager_model(folder, dtype).eval()
        return self._eager[folder, dtype]

    def plain(
        self, folder: Path, dtype: torch.dtype, prompt: Sequence[int], new: int, ends: Sequence[int] | int | None
    ) -> Plain:
        """Greedy decoding by transformers, to the first of `ends` or `new` tokens."""
        model = self.eager(folder, dtype)
        model.generation_config.eos_token_id = ends
        inputs = torch.tensor([list(prompt)])
        with torch.inference_mode():
            found = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=new,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        best = torch.cat(found.logits).double().topk(2).values
        return Plain(found.sequences[0, len(prompt) :].tolist(), (best[:, 0] - best[:, 1]).tolist())

    def engine(self, case: Case, dtype: torch.dtype, **options: Any) -> Engine:
        """An engine for `case`; with `earlier` where its policy learns from a run, which is made first."""
        target = self.target(case.family, case.seed)
        common = {
            "draft": self.draft(case.draft, case.family, case.seed),
            "gamma": None if case.draft == "none" else case.gamma,
            "dtype": str(dtype).removeprefix("torch."),
            "device": "cpu",
            "context": 256,
        }
        if case.learns:
            options = {**options, "earlier": self._earlier(target, case, common)}
        return Engine.from_pretrained(target, policy=case.recipe.name, slots=case.slots, **common, **options)

    def run(self, case: Case, dtype: torch.dtype, **options: Any) -> Ran:
        """What the engine makes of `case`."""
        with self.engine(case, dtype, **options) as engine:
            found = engine.generate(prompt_of(case), case.new, ignore_eos=not case.ends)
            moved = engine.transfers()
        return Ran(list(found.tokens), moved.drafted, moved.accepted)

    def expected(self, case: Case, dtype: torch.dtype) -> Plain:
        """What plain decoding makes of it."""
        ends = tiny_config(case.family).eos_token_id if case.ends else None
        return self.plain(self.target(case.family, case.seed), dtype, prompt_of(case), case.new, ends)

    def _earlier(self, target: Path, case: Case, common: dict[str, Any]) -> Path:
        """A trace of the same run under another policy."""
        self._traces += 1
        path = self.folder / f"earlier-{self._traces}.jsonl"
        gamma = common["gamma"] and case.recipe.speculation.gamma(common["gamma"])
        with Engine.from_pretrained(
            target, policy="on-demand.lru", cache=1.0, record=True, **{**common, "gamma": gamma}
        ) as engine:
            engine.generate(prompt_of(case), case.new, ignore_eos=not case.ends)
            trace = trace_of(engine)
            write_trace(path, trace.header, trace)
        return path

    def _saved(self, name: str, make: Callable[[], Any]) -> Path:
        folder = self.folder / name
        if not folder.exists():
            with quiet():
                make().save_pretrained(folder)
        return folder


def prompt_of(case: Case) -> list[int]:
    """Its prompt's tokens."""
    found: list[int] = tokens(case.prompt, case.seed).tolist()[0]
    return found


class Heard(NamedTuple):
    """A pass of the target as the sampler saw it: the tokens drafted, the logits behind each, and the verdict."""

    drafted: list[int]
    logits: torch.Tensor
    verdict: Verdict


@contextmanager
def listening() -> Iterator[list[Heard]]:
    """All passes of targets in the block."""
    heard: list[Heard] = []
    verify = Sampler.verify

    def listen(
        self: Sampler, drafted: Sequence[int], probs: Sequence[Any], logits: torch.Tensor, history: History
    ) -> Verdict:
        verdict = verify(self, drafted, probs, logits, history)
        heard.append(Heard(list(drafted), logits.clone(), verdict))
        return verdict

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "verify", listen)
        yield heard


@contextmanager
def drafting(guess: Callable[[Sequence[int]], int]) -> Iterator[None]:
    """In the block drafts propose what `guess` says of the tokens so far, whatever their models say (greedy only)."""
    propose = Drafter.propose

    def instead(self: Drafter, poll: Poll) -> Proposal:
        return propose(self, poll)._replace(token=guess(self.context))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drafter, "propose", instead)
        yield


def replay(model: Any, prompt: Sequence[int], heard: Sequence[Heard]) -> Iterator[torch.Tensor]:
    """The logits of `model` in the passes of one request, with everything in memory and nothing in between."""
    run = Forward(model, rolls_back=True)
    inputs = list(prompt)
    for drafted, _, (accepted, next_token) in heard:
        with torch.inference_mode():
            yield run([*inputs, *drafted], 1 + len(drafted))
        run.forget(run.length + accepted - len(drafted))
        inputs = [next_token]


def _name(family: str, seed: int, options: dict[str, Any]) -> str:
    return "-".join([family, str(seed), *(f"{name}={value}" for name, value in options.items())])


def _noisy(family: str, seed: int, **options: Any) -> Any:
    """The target with noise on its weights."""
    model = tiny_model(family, seed, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in model.parameters():
            each += torch.randn(each.shape, generator=generator).to(each.dtype) * NOISE * 0.2
    return model


def _dense(family: str, seed: int, **options: Any) -> Any:
    """A dense model as deep and as wide as the target; it has nothing else of it."""
    config = tiny_config(family, **options)
    own = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40, "sliding_window": None}
    shared = ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings")
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = MistralForCausalLM(MistralConfig(**{name: getattr(config, name) for name in shared}, **own, **ids))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in model.parameters():
            each.copy_(torch.randn(each.shape, generator=generator) * 0.2 + (each.dim() == 1))
    return model
