"""Sampling: the rule by hand, and that what comes out is distributed as the target says, whatever the draft."""
# ruff: noqa: E402

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

from engine.decoding.distribution import Distribution
from engine.decoding.sampler import Proposal, Sampler, Verdict
from engine.decoding.sampling import Sampling
from spmoe.errors import InputError
from tests.soak import times

IDS = 8
ROUNDS = times(6_000, soaked=2_000)


def sampler_of(temperature: float, seed: int | None, ids: int) -> Sampler:
    return Sampler(Sampling(temperature=temperature, seed=seed), ids)


def table(seed: int, *shape: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def without(logits: Any, *ids: int) -> Any:
    logits = logits.clone()
    logits[..., list(ids)] = -math.inf
    return logits


class Chain:
    """Logits for the first token [ids] and, by the token before, for any further one [ids before, ids]."""

    def __init__(self, first: Any, then: Any) -> None:
        self.first, self.then = first, then

    def after(self, token: int | None) -> Any:
        return self.first if token is None else self.then[token]


TARGET = Chain(table(1, IDS), table(2, IDS, IDS))
HALF = Chain(without(table(1, IDS), 0, 1, 2, 3), without(table(2, IDS, IDS), 0, 1, 2, 3))
DRAFTS = {
    "equal": (TARGET, TARGET),
    "close": (TARGET, Chain(TARGET.first + 0.5 * table(3, IDS), TARGET.then + 0.5 * table(4, IDS, IDS))),
    "other": (TARGET, Chain(table(5, IDS), table(6, IDS, IDS))),
    "peaked": (TARGET, Chain(6 * table(7, IDS), 6 * table(8, IDS, IDS))),
    "disjoint": (HALF, Chain(without(table(9, IDS), 4, 5, 6, 7), without(table(10, IDS, IDS), 4, 5, 6, 7))),
    "smaller vocabulary": (TARGET, Chain(table(11, IDS - 2), table(12, IDS, IDS - 2))),
    "larger vocabulary": (TARGET, Chain(table(13, IDS + 3), table(14, IDS, IDS + 3))),
}

Rule = Callable[[Sampler, Sequence[int], Sequence[Any], Any], Verdict]


def accept_all(sampler: Sampler, drafted: Sequence[int], _probs: Sequence[Any], logits: Any) -> Verdict:
    """Wrong: the draft's tokens come out as the draft has them."""
    return Verdict(len(drafted), sampler.propose(logits[-1]).token)


def replace_by_target(sampler: Sampler, drafted: Sequence[int], probs: Sequence[Any], logits: Any) -> Verdict:
    """Wrong: after a rejection it draws from p instead of max(p - q, 0)."""
    accepted, token = sampler.verify(drafted, probs, logits)
    return Verdict(accepted, token if accepted == len(drafted) else sampler.propose(logits[accepted]).token)


def round_of(sampler: Sampler, rule: Rule, target: Chain, draft: Chain, last: int | None) -> list[int]:
    """One round with two drafted tokens after `last`: what it puts out."""
    proposals: list[Proposal] = []
    context = [last]
    for _ in range(2):
        proposals.append(sampler.propose(draft.after(context[-1])))
        context.append(proposals[-1].token)
    logits = torch.stack([target.after(token) for token in context])
    drafted = [each.token for each in proposals]
    accepted, token = rule(sampler, drafted, [each.distribution for each in proposals], logits)
    return [*drafted[:accepted], token]


def pairs(rule: Rule, target: Chain, draft: Chain, temperature: float, seed: int) -> Any:
    """How often each pair of first tokens came out, [ids, ids]."""
    sampler = sampler_of(temperature, seed, IDS)
    counts = [[0] * IDS for _ in range(IDS)]
    for _ in range(ROUNDS):
        out = round_of(sampler, rule, target, draft, None)
        if len(out) == 1:
            out += round_of(sampler, rule, target, draft, out[0])
        counts[out[0]][out[1]] += 1
    return torch.tensor(counts, dtype=torch.float64)


def chi_square(counts: Any, probabilities: Any) -> float:
    """The probability of counts at least as far from the expected ones; rare cells are taken together."""
    counts, expected = counts.flatten(), (probabilities * counts.sum()).flatten()
    if counts[expected == 0].any():
        return 0.0
    rare = expected < 10
    counts, expected = (torch.cat((each[~rare], each[rare].sum()[None])) for each in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


def p_values(counts: Any, target: Chain, temperature: float) -> list[float]:
    """Of the first token, the second, and both together, against the target's own distribution."""
    joint = (target.first / temperature).softmax(-1)[:, None] * (target.then / temperature).softmax(-1)
    return [
        chi_square(counts.sum(1), joint.sum(1)),
        chi_square(counts.sum(0), joint.sum(0)),
        chi_square(counts, joint),
    ]


@pytest.mark.parametrize("draft", DRAFTS)
def test_what_comes_out_is_distributed_as_the_target_says(draft: str) -> None:
    target, drafter = DRAFTS[draft]
    counts = pairs(Sampler.verify, target, drafter, 1.3, seed=20)
    assert counts.sum() == ROUNDS
    assert min(p_values(counts, target, 1.3)) > 1e-3


@pytest.mark.parametrize("rule", [accept_all, replace_by_target])
def test_a_wrong_rule_does_not_pass(rule: Rule) -> None:
    target, drafter = DRAFTS["other"]
    assert max(p_values(pairs(rule, target, drafter, 1.3, seed=20), target, 1.3)) < 1e-9


def test_chi_square_agrees_with_a_printed_table() -> None:
    # 5 % of the distribution with one degree of freedom lie above 3.841, with two above 5.991.
    even = torch.tensor([0.5, 0.5], dtype=torch.float64)
    shift = math.sqrt(3.841 * 500 / 2)
    assert chi_square(torch.tensor([500 + shift, 500 - shift], dtype=torch.float64), even) == pytest.approx(
        0.05, rel=1e-3
    )
    thirds = torch.tensor([1, 1, 1], dtype=torch.float64) / 3
    shift = math.sqrt(5.991 * 300 / 2)
    counts = torch.tensor([300 + shift, 300 - shift, 300], dtype=torch.float64)
    assert chi_square(counts, thirds) == pytest.approx(0.05, rel=1e-3)


class Scripted(Sampler):
    """With its numbers given."""

    def __init__(self, *numbers: float, vocabulary: int = 3) -> None:
        super().__init__(Sampling(temperature=1.0, seed=0), vocabulary)
        self.numbers = iter(numbers)

    def _number(self) -> float:
        return next(self.numbers)


def logits_of(*rows: Sequence[float]) -> Any:
    return torch.tensor(rows, dtype=torch.float64).log()


def probs(*values: float) -> Distribution:
    return Distribution(None, torch.tensor(values, dtype=torch.float64))


P, AFTER = (0.2, 0.5, 0.3), (0.25, 0.25, 0.5)
Q = (0.5, 0.25, 0.25)


@pytest.mark.parametrize(
    ("drafted", "numbers", "expected"),
    [
        # p/q of token 0 is 0.4.  max(p - q, 0) is (0, 0.25, 0.05): of 0.3, token 1 has the first five sixths.
        (0, (0.39, 0.49), Verdict(1, 1)),
        (0, (0.39, 0.51), Verdict(1, 2)),
        (0, (0.41, 0.83), Verdict(0, 1)),
        (0, (0.41, 0.84), Verdict(0, 2)),
        (0, (0.41, 0.0), Verdict(0, 1)),
        # Token 1 is likelier to the target: it always stands.
        (1, (0.999, 0.0), Verdict(1, 0)),
    ],
)
def test_a_token_stands_or_falls_by_hand(drafted: int, numbers: Sequence[float], expected: Verdict) -> None:
    assert Scripted(*numbers).verify([drafted], [probs(*Q)], logits_of(P, AFTER)) == expected


def test_a_token_impossible_to_the_target_never_stands() -> None:
    assert Scripted(0.0, 0.0).verify([0], [probs(1, 0, 0)], logits_of((0, 0.5, 0.5), AFTER)) == Verdict(0, 1)


def test_what_follows_a_rejected_token_is_not_looked_at() -> None:
    sampler = Scripted(0.9, 0.9, 0.9, 0.99)
    rows = logits_of(P, P, AFTER, AFTER)
    assert sampler.verify([1, 0, 2], [probs(*Q)] * 3, rows) == Verdict(1, 2)
    assert next(sampler.numbers) == 0.99


def test_a_token_that_only_the_target_has_is_what_the_draft_leaves_out() -> None:
    # p - q is (-0.3, 0, 0.3): token 2 replaces whatever is rejected.
    p, q = (0.2, 0.5, 0.3), (0.5, 0.5)
    for number in (0.001, 0.999):
        assert Scripted(0.5, number).verify([0], [probs(*q)], logits_of(p, AFTER)) == Verdict(0, 2)


def test_without_drafted_tokens_the_target_draws() -> None:
    draws = [Scripted(number).verify([], [], logits_of(P)).next_token for number in (0.0, 0.19, 0.21, 0.69, 0.71)]
    assert draws == [0, 0, 1, 1, 2]


def test_surplus_is_the_target_where_only_rounding_is_left() -> None:
    p = probs(0.5, 0.5)
    assert p.surplus(probs(0.5, math.nextafter(0.5, 1))).weights.tolist() == [0.5, 0.5]
    assert p.surplus(probs(0.25, 0.75)).weights.tolist() == [1, 0]
    assert p.weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("number", [0.0, math.nextafter(1, 0)])
def test_a_token_without_probability_is_never_drawn(number: float) -> None:
    found = Scripted(number, vocabulary=5).propose(logits_of((0, 0, 1, 0, 0))[0])
    assert (found.token, found.probability) == (2, 1.0)


def test_a_draft_never_proposes_what_the_target_has_not() -> None:
    logits = logits_of((0.1, 0.1, 0.2, 0.6))[0]
    greedy = sampler_of(0, None, 3).propose(logits)
    assert greedy.token == 2 and greedy.probability == pytest.approx(0.5)
    drawn = Scripted(math.nextafter(1, 0)).propose(logits)
    assert drawn.token == 2 and drawn.distribution is not None
    assert drawn.distribution.weights.tolist() == pytest.approx([0.25, 0.25, 0.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_is_the_argmax_and_of_equals_the_lowest(dtype: Any) -> None:
    rows = table(30, 200, IDS).round().to(dtype)  # with many ties
    sampler = sampler_of(0, None, IDS)
    for row in rows:
        token, probability, distribution = sampler.propose(row)
        assert token == row.tolist().index(row.max())
        assert probability == pytest.approx(float(row.double().softmax(0)[token]), rel=1e-5)
        assert distribution is None
        assert sampler.verify([], [], row[None]) == Verdict(0, token)


@pytest.mark.parametrize(
    ("drafted", "expected"),
    [([3, 1, 2], (3, 0)), ([3, 1, 0], (2, 2)), ([3, 0, 2], (1, 1)), ([0, 1, 2], (0, 3)), ([], (0, 3))],
)
def test_greedy_keeps_the_leading_run_of_argmaxes(drafted: list[int], expected: tuple[int, int]) -> None:
    logits = torch.nn.functional.one_hot(torch.tensor([3, 1, 2, 0])).float()[: len(drafted) + 1]
    assert sampler_of(0, None, 4).verify(drafted, [None] * len(drafted), logits) == expected


def test_a_tiny_temperature_is_all_but_greedy() -> None:
    logits = table(31, 50, IDS)
    sampler = sampler_of(5e-324, 1, IDS)
    assert [sampler.propose(row).token for row in logits] == logits.argmax(-1).tolist()


def test_a_seed_gives_the_same_tokens_again() -> None:
    def run(seed: int | None) -> tuple[int, list[list[int]]]:
        sampler = sampler_of(1.0, seed, IDS)
        target, draft = DRAFTS["close"]
        return sampler.seed, [round_of(sampler, Sampler.verify, target, draft, None) for _ in range(50)]

    state = torch.get_rng_state()
    assert run(5) == run(5)
    assert run(5)[1] != run(6)[1]
    chosen, out = run(None)
    assert run(chosen)[1] == out
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("temperature", [-0.1, math.inf, math.nan])
def test_a_temperature_must_be_finite_and_not_negative(temperature: float) -> None:
    with pytest.raises(
        InputError, match=rf"^field temperature: expected a finite number from 0 up, got {temperature}$"
    ):
        Sampling(temperature=temperature)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_must_be_in_range(seed: int) -> None:
    with pytest.raises(InputError, match=rf"^field seed: expected an integer from 0 to 2\*\*63 - 1, got {seed}$"):
        Sampling(seed=seed)
    Sampling(seed=2**63 - 1)
