"""What foretells the target's experts, and how often it is right."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from engine.moe.layers import find_moe_layers
from training.accuracy import Accuracy, Score, mean
from training.evaluation import groups
from training.models import fresh_dense
from training.observation import experts_used, observe
from training.predictors import Tables, learn_tables, orders
from training.recipe import MICRO
from training.reliability import ReliabilityTally
from training.upcycling import upcycle

EXPERTS, K = MICRO.experts, MICRO.top_k
SEEN = 50
"""Token ids that occur in training text."""


def text(windows: int, seed: int, vocabulary: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (windows, MICRO.context + 1), generator=generator)


@pytest.fixture(scope="module")
def pair() -> tuple[object, object]:
    dense = fresh_dense(MICRO).eval()
    return dense, upcycle(dense, MICRO, text(8, 0, MICRO.vocabulary)[:, :-1]).eval()


@pytest.fixture(scope="module")
def tables(pair: tuple[object, object]) -> Tables:
    return learn_tables(pair[1], text(10, 1, SEEN))


def test_accuracy_by_hand() -> None:
    score = Score()
    # Two used of four.  First named, first used: 2 and 2, both named; then 0 and 1: used, but second, and its other
    # expert is third; then 3 and 0: not used, and one more names one, two more both.
    score.count(torch.tensor([[2, 1, 0, 3], [0, 2, 1, 3]]), torch.tensor([[2, 1], [1, 0]]))
    score.count(torch.tensor([[3, 2, 1, 0]]), torch.tensor([[0, 1]]))
    assert score.result() == pytest.approx((2 / 3, 1 / 3, 1.5 / 3, 2.5 / 3, 1.0))
    assert mean([score.result(), Accuracy(0, 1, 1, 1, 1)]) == pytest.approx((1 / 3, 2 / 3, 3 / 4, 5.5 / 6, 1.0))


def test_reliability_by_hand() -> None:
    found = ReliabilityTally()
    found.count(torch.tensor([0.25, 0.5]), torch.tensor([0, 1]), torch.tensor([[0, 1], [0, 1]]))
    other = ReliabilityTally()
    other.count(torch.tensor([0.5, 1.0]), torch.tensor([1, 2]), torch.tensor([[2, 3], [2, 3]]))
    assert found.result().plus(other.result()).to_json() == {
        # |0.25 - 1| + |2 x 0.5 - 0| + |1 - 1|, and |0.25 - 1| + |2 x 0.5 - 1| + |1 - 1|, of four forecasts.
        "first_error": pytest.approx(1.75 / 4),
        "used_error": pytest.approx(0.75 / 4),
        "bins": [
            {"low": 0.2, "high": 0.3, "cells": 1, "mean": 0.25, "first": 1.0, "used": 1.0},
            {"low": 0.5, "high": 0.6, "cells": 2, "mean": 0.5, "first": 0.0, "used": 0.5},
            {"low": 0.9, "high": 1.0, "cells": 1, "mean": 1.0, "first": 1.0, "used": 1.0},
        ],
    }


def test_tables_count_what_training_text_uses(pair: tuple[object, object], tables: Tables) -> None:
    counts: list[Counter[tuple[int, int]]] = [Counter() for _ in range(MICRO.layers)]
    with torch.inference_mode():
        for tokens, chosen in experts_used(pair[1], text(10, 1, SEEN)):
            for plain, experts in zip(counts, chosen, strict=True):
                rows = zip(tokens.tolist(), experts.tolist(), strict=True)
                plain.update((token, expert) for token, row in rows for expert in row)
    for layer, plain in enumerate(counts):
        total = [sum(plain[token, expert] for token in range(MICRO.vocabulary)) for expert in range(EXPERTS)]
        popular = sorted(range(EXPERTS), key=lambda expert: -total[expert])
        assert tables.popular[layer].tolist() == popular
        for token in (0, 7, SEEN - 1, SEEN, MICRO.vocabulary - 1):
            expected = sorted(popular, key=lambda expert: -plain[token, expert])
            assert tables.by_token[layer, token].tolist() == expected
        assert tables.by_token[layer, SEEN].tolist() == popular  # never seen


def test_predictors_say_what_their_names_do(pair: tuple[object, object], tables: Tables) -> None:
    layers = find_moe_layers(pair[1])  # type: ignore[arg-type]
    with torch.inference_mode():
        (seen,) = observe(*pair, text(3, 2, MICRO.vocabulary))
        said = list(orders(seen, layers, tables))
    assert [set(each) for each in said] == [
        {"draft", "token_table", "popularity", "token_before"},
        {"draft", "next_gate", "token_table", "popularity", "token_before"},
    ]
    for layer, states, named in zip(layers, seen.layers, said, strict=True):
        assert all(each.sort().values.tolist() == [list(range(EXPERTS))] * 96 for each in named.values())
        used = states.routing.experts
        with torch.inference_mode():
            assert torch.equal(layer.forecast(states.residual)[0], used)  # what the router reads is what was kept
            assert torch.equal(named["draft"][:, :K], layer.forecast(states.draft_residual)[0])
            if layer.index:
                assert torch.equal(named["next_gate"][:, :K], layer.forecast(seen.layers[0].residual)[0])
        before = named["token_before"][:, :K].view(3, MICRO.context, K)
        assert torch.equal(before[:, 1:], used.view(3, MICRO.context, K)[:, :-1])
        assert torch.equal(before[:, 0], tables.popular[layer.index, :K].expand(3, K))
        assert torch.equal(named["token_table"], tables.by_token[layer.index][seen.tokens])


def test_asking_routers_about_one_pass_does_not_spoil_the_next(pair: tuple[object, object], tables: Tables) -> None:
    windows = text(11, 3, MICRO.vocabulary)  # two passes
    layers = find_moe_layers(pair[1])  # type: ignore[arg-type]
    with torch.inference_mode():
        alone = [seen.layers[1].routing.experts for seen in observe(*pair, windows)]
        asked = []
        for seen in observe(*pair, windows):
            list(orders(seen, layers, tables))
            asked.append(seen.layers[1].routing.experts)
    assert len(asked) == 2 and all(map(torch.equal, alone, asked))


def test_layers_are_grouped_with_the_first_alone() -> None:
    assert groups(8) == [range(1), range(1, 4), range(4, 8), range(1, 8)]
    assert groups(3) == [range(1), range(1, 3)]
    assert groups(1) == [range(1)]
