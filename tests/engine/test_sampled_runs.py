"""With a temperature: what comes out of the engine is distributed as the target alone would draw it, and a seed brings
it back."""
# ruff: noqa: E402

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
pytest.importorskip("transformers", reason="the engine needs transformers")

from engine.decoding.drafter import Drafter
from engine.decoding.sampler import Sampler, Verdict
from engine.engine import Engine
from spmoe.policy.registry import RECIPES
from tests.engine.decoding.test_sampler import chi_square
from tests.engine.pairs import Case, Pairs, prompt_of
from tests.engine.runs import FAST
from tests.soak import times

pytestmark = pytest.mark.usefixtures("no_network")

IDS = 8
NEW = 5
"""The first token comes from the prompt's pass, the others from rounds with two drafted tokens, or fewer at the end."""
SMALL = {"vocab_size": IDS, "num_hidden_layers": 1}
PROMPT = [3, 4]
ROUNDS = times(400, soaked=1000)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("pairs"))


def ancestral(model: Any, temperature: float) -> Any:
    """The probability of every sequence of `NEW` tokens behind the prompt, float64 [IDS, ..., IDS]."""
    joint = torch.ones((), dtype=torch.float64)
    for place in range(NEW):
        prefixes = [[*PROMPT, *tokens] for tokens in product(range(IDS), repeat=place)]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor(prefixes)).logits[:, -1]
        joint = joint[..., None] * (logits / temperature).softmax(-1).view([IDS] * (place + 1))
    return joint


def count(pairs: Pairs, draft: str, temperature: float, rounds: int, **options: Any) -> Any:
    """How often each sequence came out, [IDS, ..., IDS]."""
    counts = torch.zeros([IDS] * NEW, dtype=torch.float64)
    given = {"policy": "on-demand.lru", "gamma": 2, **options}
    with Engine.from_pretrained(
        pairs.target("mixtral", **SMALL), pairs.draft(draft, "mixtral", **SMALL), slots=2, dtype="float32", **given
    ) as engine:
        for seed in range(rounds):
            found = engine.generate(PROMPT, NEW, temperature=temperature, seed=seed, ignore_eos=True)
            counts[found.tokens] += 1
    return counts


def p_values(counts: Any, joint: Any) -> list[float]:
    """Of each token, and of each with the one before."""
    found = []
    for kept in [(place,) for place in range(NEW)] + [(place, place + 1) for place in range(NEW - 1)]:
        rest = [place for place in range(NEW) if place not in kept]
        found.append(chi_square(counts.sum(rest), joint.sum(rest)))
    return found


@pytest.mark.parametrize(("draft", "temperature"), [("random", 1.0), ("noisy", 0.7)])
def test_what_comes_out_is_distributed_as_the_target_draws(pairs: Pairs, draft: str, temperature: float) -> None:
    joint = ancestral(pairs.eager(pairs.target("mixtral", **SMALL), torch.float64), temperature)
    assert float(joint.sum()) == pytest.approx(1)
    counts = count(pairs, draft, temperature, ROUNDS)
    assert counts.sum() == ROUNDS
    assert min(p_values(counts, joint)) > 1e-3


@pytest.mark.parametrize("length", [{"gamma": 1}, {"gamma": None, "gamma_max": 3}], ids=["one", "chosen"])
def test_so_it_is_where_lengths_are_chosen_and_the_draft_goes_on(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch, length: dict[str, Any]
) -> None:
    """With a draft that is right often enough for its tokens past the window to stand."""
    counts_of_kept = Counter[int]()
    round_ended = Drafter.round_ended

    def counted(self: Drafter, length: int, kept: int) -> None:
        counts_of_kept[kept] += 1
        round_ended(self, length, kept)

    monkeypatch.setattr(Drafter, "round_ended", counted)
    joint = ancestral(pairs.eager(pairs.target("mixtral", **SMALL), torch.float64), 0.7)
    slow = replace(FAST, link=replace(FAST.link, bandwidth=3 * 10**6))
    counts = count(
        pairs, "noisy", 0.7, ROUNDS, policy="spmoe.foresight", virtual_time=slow, cpu_experts=False, **length
    )
    assert min(p_values(counts, joint)) > 1e-3
    assert (sum(counts_of_kept.values()) > counts_of_kept[0]) == (length["gamma"] is not None)


def test_drafts_that_are_always_accepted_do_not_pass(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    def accept_all(self: Sampler, drafted: Sequence[int], probs: Sequence[Any], logits: Any, history: Any) -> Verdict:
        return Verdict(len(drafted), self.propose(logits[-1]).token)

    monkeypatch.setattr(Sampler, "verify", accept_all)
    joint = ancestral(pairs.eager(pairs.target("mixtral", **SMALL), torch.float64), 1.0)
    assert min(p_values(count(pairs, "random", 1.0, 300), joint)) < 1e-6


@pytest.mark.parametrize("draft", ["noisy", "random"])
def test_a_seed_gives_the_same_tokens_whatever_the_room(pairs: Pairs, draft: str) -> None:
    texts: dict[int, set[tuple[int, ...]]] = {seed: set() for seed in range(3)}
    for policy, room in (("on-demand.lru", 0.0), ("spmoe.paper", 0.3), ("moe-spac", 0.3), ("spmoe.per-layer", 1.0)):
        case = Case(RECIPES[policy], "mixtral", 0, draft, 3, room, 6, 16, False)
        with pairs.engine(case, torch.float32) as engine:
            for seed in (0, 1, 2, 0):  # the first again, with other experts in the slots
                found = engine.generate(prompt_of(case), case.new, temperature=1.0, seed=seed, ignore_eos=True)
                texts[seed].add(found.tokens)
    assert all(len(each) == 1 for each in texts.values())
    assert len(set.union(*texts.values())) == 3
