"""bfloat16 rounds so coarsely that blocks of tokens may take another turn than single ones: how often, and how near.

That offloading itself changes nothing is shown bit by bit in `test_lossless.py`; here speculation is held against what
plain decoding does with its own rounding.
"""
# ruff: noqa: E402

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
pytest.importorskip("transformers", reason="the engine needs transformers")

from spmoe.policy.registry import RECIPES
from tests.engine.pairs import Case, Pairs, prompt_of
from tests.engine.tiny import FAMILIES
from tests.soak import times

pytestmark = pytest.mark.usefixtures("no_network")

NEW = 32
RUNS = [(family, seed) for family in FAMILIES for seed in range(times(1))]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("pairs"))


def gaps(model: Any, prompt: Sequence[int], found: Sequence[int]) -> list[float]:
    """Of the tokens `found` behind `prompt` that one forward pass over all of them would not have put out: by how much
    their logits are below the best."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *found]])).logits[0, len(prompt) - 1 : -1].float()
    behind = logits.max(-1).values - logits.gather(1, torch.tensor(found)[:, None])[:, 0]
    listed: list[float] = behind[behind > 0].tolist()
    return listed


def test_speculation_strays_no_more_than_plain_decoding(pairs: Pairs, record_property: pytest.RecordProperty) -> None:
    speculative: list[float] = []
    plain: list[float] = []
    same = 0
    for number, (family, seed) in enumerate(RUNS):
        draft, gamma = ("noisy", "itself")[number % 2], 1 + number % 8
        case = Case(RECIPES["spmoe.per-layer"], family, seed, draft, gamma, 0.3, 9, NEW, False)
        found, expected = pairs.run(case, torch.bfloat16).tokens, pairs.expected(case, torch.bfloat16).tokens
        model = pairs.eager(pairs.target(family, seed), torch.bfloat16)
        speculative += gaps(model, prompt_of(case), found)
        plain += gaps(model, prompt_of(case), expected)
        same += found == expected
    count = len(RUNS) * NEW
    for name, value in (
        ("runs", len(RUNS)),
        ("runs with the same tokens", same),
        ("tokens", count),
        ("not the best, speculative", len(speculative)),
        ("not the best, plain", len(plain)),
        ("widest gap, speculative", max(speculative, default=0.0)),
        ("widest gap, plain", max(plain, default=0.0)),
    ):
        record_property(name, value)
    # Both are rounding: some tokens in a thousand, and almost always between neighbours.
    assert len(speculative) <= 2 * len(plain) + 0.005 * count
    assert len([gap for gap in speculative if gap > 0.1]) <= len([gap for gap in plain if gap > 0.1]) + 0.002 * count
    assert same >= 0.5 * len(RUNS)


def test_a_wrong_token_would_be_seen(pairs: Pairs) -> None:
    case = Case(RECIPES["on-demand.lru"], "mixtral", 0, "none", 0, 1.0, 9, NEW, False)
    text = pairs.expected(case, torch.bfloat16).tokens
    spoilt = [*text[:10], (text[10] + 1) % 64, *text[11:]]
    assert max(gaps(pairs.eager(pairs.target("mixtral", 0), torch.bfloat16), prompt_of(case), spoilt)) > 0.1
