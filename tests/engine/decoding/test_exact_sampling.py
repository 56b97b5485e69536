"""Every sampling option is exact under speculation: what a round puts out, enumerated draw by draw, is distributed as
the target alone would draw it with the same options."""
# ruff: noqa: E402

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
pytest.importorskip("transformers", reason="the engine needs transformers")

from engine.decoding.distribution import Distribution, chance
from engine.decoding.sampler import Sampler
from engine.decoding.sampling import Sampling
from engine.decoding.warper import History, Warper

IDS = 4
PROMPT = (1, 2)
END = 3
OPTIONS = {
    "temperature": {"temperature": 0.7},
    "top-k": {"top_k": 2},
    "top-p": {"top_p": 0.6},
    "min-p": {"min_p": 0.4},
    "repetition": {"repetition_penalty": 1.7},
    "presence": {"presence_penalty": 1.3},
    "frequency": {"frequency_penalty": 0.9},
    "min tokens": {"min_tokens": 3},
    "all": {
        "temperature": 1.4,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": -0.3,
        "min_tokens": 2,
    },
}
Model = Callable[[Sequence[int]], Any]
Propose = Callable[[Any, History], Distribution]
Outcomes = dict[tuple[int, ...], float]


def model(seed: int, ids: int = IDS) -> Model:
    """Logits [ids] that depend on all tokens before."""

    def logits(tokens: Sequence[int]) -> Any:
        number = seed
        for token in tokens:
            number = (number * 31 + token + 1) % (2**31)
        return 1.5 * torch.randn(ids, generator=torch.Generator().manual_seed(number), dtype=torch.float64)

    return logits


TARGET = model(1)


def warper_of(options: dict[str, Any]) -> Warper:
    return Warper(Sampling(**{"temperature": 1.0, **options}), {END})


def history(output: Sequence[int]) -> History:
    return History([*PROMPT, *output], len(PROMPT))


def alone(warper: Warper, length: int) -> Outcomes:
    """The probability of every output of that length, drawn token by token."""
    found: Outcomes = {(): 1.0}
    for _ in range(length):
        found = {
            (*output, token): share * warper.distribution(TARGET([*PROMPT, *output]), history(output)).of(token)
            for output, share in found.items()
            for token in range(IDS)
        }
    return found


def rounds(draft: Model, propose: Propose, verify: Propose, output: tuple[int, ...], window: int) -> Outcomes:
    """What a round that drafts `window` tokens behind `output` puts out, with its probability.

    Every draft's tokens and every decision on them is followed; `propose` and `verify` say what is drawn from.
    """
    found: Outcomes = {}

    def put(tokens: tuple[int, ...], share: float) -> None:
        if share:
            found[tokens] = found.get(tokens, 0.0) + share

    for drafted in product(range(IDS), repeat=window):
        share, proposals = 1.0, []
        for place, token in enumerate(drafted):
            before = (*output, *drafted[:place])
            proposals.append(propose(draft([*PROMPT, *before]), history(before)))
            share *= proposals[-1].of(token)
        if not share:
            continue
        for place, token in enumerate(drafted):
            before = (*output, *drafted[:place])
            p, q = verify(TARGET([*PROMPT, *before]), history(before)), proposals[place]
            stands = chance(p, q, token)
            rest = p.surplus(q)
            total = float(rest.weights.sum())
            for other in range(IDS):
                put((*before, other), share * (1 - stands) * rest.of(other) / total)
            share *= stands
        before = (*output, *drafted)
        last = verify(TARGET([*PROMPT, *before]), history(before))
        for token in range(IDS):
            put((*before, token), share * last.of(token))
    return found


def speculated(warper: Warper, draft: Model, length: int, window: int, propose: Propose, verify: Propose) -> Outcomes:
    """The first `length` tokens of rounds of that window, one after the other."""
    done: Outcomes = {}
    under_way: Outcomes = {(): 1.0}
    while under_way:
        output, share = under_way.popitem()
        for found, part in rounds(draft, propose, verify, output, window).items():
            into = done if len(found) >= length else under_way
            key = found[:length]
            into[key] = into.get(key, 0.0) + share * part
    return done


def variation(first: Outcomes, second: Outcomes) -> float:
    """The total variation between the two."""
    return sum(abs(first.get(key, 0.0) - second.get(key, 0.0)) for key in first.keys() | second.keys()) / 2


def cases() -> Iterator[Any]:
    for name, options in OPTIONS.items():
        for window in (1, 2, 3):
            yield pytest.param(options, window, id=f"{name}-{window}")


@pytest.mark.parametrize(("options", "window"), list(cases()))
def test_rounds_put_out_what_the_target_alone_would(options: dict[str, Any], window: int) -> None:
    warper = warper_of(options)
    for draft in (model(2), model(2, IDS - 1), TARGET):
        found = speculated(warper, draft, 3, window, warper.distribution, warper.distribution)
        assert variation(found, alone(warper, 3)) < 1e-12
        assert sum(found.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("options", [{"top_k": 2}, {"temperature": 0.5}])
def test_a_draft_said_to_draw_from_more_than_it_does_is_not_exact(options: dict[str, Any]) -> None:
    """Where the rule reckons with the draft's plain distribution, and it draws from a warped one."""
    warper, plain = warper_of(options), warper_of({})
    draft = model(2)

    def mistaken(output: tuple[int, ...]) -> Outcomes:
        found: Outcomes = {}
        logits = draft([*PROMPT, *output])
        p = warper.distribution(TARGET([*PROMPT, *output]), history(output))
        drawn, told = warper.distribution(logits, history(output)), plain.distribution(logits, history(output))
        for token in range(IDS):
            stands = chance(p, told, token)
            found[(token,)] = found.get((token,), 0.0) + drawn.of(token) * stands
            rest = p.surplus(told)
            for other in range(IDS):
                lost = drawn.of(token) * (1 - stands) * rest.of(other) / float(rest.weights.sum())
                found[(other,)] = found.get((other,), 0.0) + lost
        return found

    assert variation(mistaken(()), alone(warper, 1)) > 0.01


@pytest.mark.parametrize("option", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_a_window_with_the_history_of_its_first_token_is_not_exact(option: str) -> None:
    warper = warper_of({option: 1.7})

    def first_only(logits: Any, whole: History) -> Distribution:
        return warper.distribution(logits, History(whole.tokens[: len(PROMPT)], len(PROMPT)))

    found = speculated(warper, model(2), 3, 3, warper.distribution, first_only)
    assert variation(found, alone(warper, 3)) > 0.01


def test_a_greedy_draft_said_to_have_drawn_is_not_exact() -> None:
    warper, draft = warper_of({}), model(2)

    def one_hot(logits: Any, _: History) -> Distribution:
        return Distribution(None, torch.nn.functional.one_hot(logits.argmax(), len(logits)).double())

    exact = speculated(warper, draft, 2, 2, one_hot, warper.distribution)
    assert variation(exact, alone(warper, 2)) < 1e-12
    token = int(draft(PROMPT).argmax())
    p, q = warper.distribution(TARGET(PROMPT)), warper.distribution(draft(PROMPT))
    stands, rest = chance(p, q, token), p.surplus(q)
    wrong = {
        (other,): (other == token) * stands + (1 - stands) * rest.of(other) / float(rest.weights.sum())
        for other in range(IDS)
    }
    assert variation(wrong, alone(warper, 1)) > 0.01


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_sampler_decides_by_these_distributions(options: dict[str, Any]) -> None:
    """Number by number: what it proposes, keeps and puts in the place of what it rejects."""

    numbers: list[float] = []

    class Scripted(Sampler):
        def _number(self) -> float:
            return numbers.pop(0)

    sampling = Sampling(**{"temperature": 1.0, **options})
    warper, sampler, draft = warper_of(options), Scripted(sampling, IDS, {END}), model(2)
    for first, second in product([0.02, 0.3, 0.6, 0.99], repeat=2):
        numbers[:] = [first]
        proposal = sampler.propose(draft(PROMPT), history(()))
        q = warper.distribution(draft(PROMPT), history(()))
        assert proposal.token == q.draw(first)
        rows = torch.stack([TARGET(PROMPT), TARGET([*PROMPT, proposal.token])])
        p = warper.distribution(rows[0], history(()))
        numbers[:] = [second, first]
        verdict = sampler.verify([proposal.token], [proposal.distribution], rows, history(()))
        if second < chance(p, q, proposal.token):
            last = warper.distribution(rows[1], history((proposal.token,)))
            assert verdict == (1, last.draw(first))
        else:
            assert verdict == (0, p.surplus(q).draw(first))
