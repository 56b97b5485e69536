from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from spmoe.errors import InputError
from spmoe.trace.calibration import EDGES, RELIABILITY, bin_weights
from spmoe.trace.draws import Draws, Rates, draw
from spmoe.trace.schema import ONE, Cell

EXPERTS, TOP_K, LAYERS = 8, 2, 6


def random_routes(tokens: int, *, experts: int = EXPERTS, top_k: int = TOP_K, seed: int = 1) -> list[tuple[Cell, ...]]:
    """Skewed, so that popularity shows: expert e's score is noise plus e / 8."""
    scores = np.random.default_rng(seed).random((tokens, LAYERS, experts)) + np.arange(experts) / 8
    best = scores.argsort(axis=2)[..., ::-1][..., :top_k]
    return [tuple(map(tuple, row)) for row in best.tolist()]


def rights(routes: list[tuple[Cell, ...]], draws: Draws, name: str = "draft") -> NDArray[np.bool_]:
    """[tokens, layers, ranks]: the named expert was routed to."""
    return np.array(
        [
            [[expert in cell for expert, _ in forecast] for forecast, cell in zip(forecasts[name], row, strict=True)]
            for forecasts, row in zip(draws.forecasts, routes, strict=True)
        ]
    )


ROUTES = random_routes(4000)


@pytest.mark.parametrize("accuracy", [0.3, 0.65, 0.889, 0.95])
def test_every_rank_is_right_at_the_rate_independently(accuracy: float) -> None:
    hits = rights(ROUTES, draw(ROUTES, EXPERTS, Rates(0.9, accuracy), seed=5))
    assert hits.shape == (4000, LAYERS, TOP_K)
    assert hits.mean(axis=(0, 1)) == pytest.approx([accuracy] * TOP_K, abs=0.01)
    assert hits.mean(axis=(0, 2)) == pytest.approx([accuracy] * LAYERS, abs=0.02)
    flat = hits.reshape(4000, -1)
    correlation = np.corrcoef(flat, rowvar=False) - np.eye(flat.shape[1])
    assert np.abs(correlation).max() < 0.06
    assert abs(np.corrcoef(flat[:-1, 0], flat[1:, 0])[0, 1]) < 0.06


def test_right_ranks_name_their_own_expert_and_none_is_named_twice() -> None:
    draws = draw(ROUTES, EXPERTS, Rates(0.9, 0.8), seed=5)
    for forecasts, row in zip(draws.forecasts, ROUTES, strict=True):
        for forecast, cell in zip(forecasts["draft"], row, strict=True):
            named = [expert for expert, _ in forecast]
            assert len(set(named)) == len(named) == TOP_K
            for rank, expert in enumerate(named):
                assert expert == cell[rank] or expert not in cell


def test_wrong_ranks_follow_the_popularity_of_the_layer() -> None:
    # Experts 0 and 1 are always the actual ones of layer 0, except for a few tokens that make 2 and 3 popular 3 : 1.
    cells = [(0, 1)] * 4000 + [(2, 0)] * 300 + [(3, 0)] * 100
    routes: list[tuple[Cell, ...]] = [(cell,) for cell in cells]
    draws = draw(routes, 6, Rates(0.9, 0.0), seed=2)
    first = [forecasts["draft"][0][0][0] for forecasts in draws.forecasts[:4000]]
    assert set(first) == {2, 3}  # 4 and 5 were never used
    assert first.count(2) / 4000 == pytest.approx(0.75, abs=0.03)
    second = [forecasts["draft"][0][1][0] for forecasts in draws.forecasts[:4000]]
    assert set(second) == {2, 3}


def test_unused_experts_are_drawn_evenly_when_nothing_else_is_left() -> None:
    draws = draw([((0, 1),)] * 3000, 5, Rates(0.9, 0.0), seed=2)
    first = [forecasts["draft"][0][0][0] for forecasts in draws.forecasts]
    assert [first.count(expert) / 3000 for expert in (2, 3, 4)] == pytest.approx([1 / 3] * 3, abs=0.03)


def test_ranks_without_an_expert_left_are_left_out() -> None:
    draws = draw([((0, 1, 2),)], 4, Rates(0.9, 0.0), seed=2)
    assert [expert for expert, _ in draws.forecasts[0]["draft"][0]] == [3]
    short = draw([((0, 1), (2,), ())], 4, Rates(0.9, 1.0), seed=2).forecasts[0]["draft"]
    assert [[expert for expert, _ in forecast] for forecast in short] == [[0, 1], [2], []]


def test_missing_routes_have_no_forecast_and_the_first_layer_no_next_gate() -> None:
    routes: list[tuple[Cell, ...]] = [((0, 1), (), (2, 3))]
    forecasts = draw(routes, 4, Rates(1.0, 0.9, 0.9), seed=0).forecasts[0]
    assert [len(forecast) for forecast in forecasts["draft"]] == [2, 0, 2]
    assert [len(forecast) for forecast in forecasts["next_gate"]] == [0, 0, 2]
    assert draw(routes, 4, Rates(1.0, None), seed=0).forecasts == [{}]


@pytest.mark.parametrize("accuracy", [0.65, 0.75, 0.889, 0.95, 0.99])
def test_the_bins_are_as_reliable_as_measured(accuracy: float) -> None:
    draws = draw(ROUTES * 4, EXPERTS, Rates(0.9, accuracy), seed=7)
    hits = rights(ROUTES * 4, draws).ravel()
    shares = np.array([[[p for _, p in f] for f in forecasts["draft"]] for forecasts in draws.forecasts]).ravel()
    assert shares.min() >= 0 and shares.max() <= ONE
    bins = np.searchsorted(np.array(EDGES[1:-1]) * ONE, shares, side="right")
    for number, reliability in enumerate(RELIABILITY):
        inside = hits[bins == number]
        if len(inside) >= 300:
            assert inside.mean() == pytest.approx(reliability, abs=0.03), f"bin {number}"
    assert (np.bincount(bins, minlength=6) / len(bins)) == pytest.approx(bin_weights(accuracy), abs=0.01)


@pytest.mark.parametrize("accuracy", [0.65, 0.75, 0.889, 0.95, 0.997])
def test_bin_weights_have_the_accuracy_as_their_mean(accuracy: float) -> None:
    weights = bin_weights(accuracy)
    assert sum(weights) == pytest.approx(1)
    assert np.dot(weights, RELIABILITY) == pytest.approx(accuracy)


def test_accuracies_out_of_reach_take_the_outermost_bin() -> None:
    assert bin_weights(0.4)[0] == pytest.approx(1)
    assert bin_weights(1.0)[-1] == pytest.approx(1)


@pytest.mark.parametrize("agreement", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("auc", [0.5, 0.7, 0.9])
def test_confidence_predicts_agreement(agreement: float, auc: float) -> None:
    tokens = 40_000
    draws = draw([((0,),)] * tokens, 1, Rates(agreement, None, None, auc), seed=11)
    agree, sure = np.array(draws.agree), np.array(draws.draft_prob)
    assert agree.mean() == pytest.approx(agreement, abs=0.01)
    assert abs(np.corrcoef(agree[:-1], agree[1:])[0, 1]) < 0.03
    # Mann-Whitney, ties counted half
    order = np.sort(sure[~agree])
    below = np.searchsorted(order, sure[agree], side="left") + np.searchsorted(order, sure[agree], side="right")
    assert below.mean() / 2 / len(order) == pytest.approx(auc, abs=0.02)
    # calibrated: within each tenth of the tokens by confidence, the mean is the rate
    for part in np.array_split(np.argsort(sure, kind="stable"), 10):
        assert agree[part].mean() == pytest.approx(sure[part].mean() / ONE, abs=0.03)


def test_certain_agreement_has_certain_confidence() -> None:
    assert draw([((0,),)] * 3, 1, Rates(1.0, None), seed=0).draft_prob == [ONE] * 3
    assert draw([((0,),)] * 3, 1, Rates(0.0, None), seed=0).draft_prob == [0] * 3


def test_one_rate_changes_one_draw() -> None:
    routes = ROUTES[:600]
    base = draw(routes, EXPERTS, Rates(0.9, 0.8, 0.7), seed=4)
    other_draft = draw(routes, EXPERTS, Rates(0.9, 0.6, 0.7), seed=4)
    assert (other_draft.agree, other_draft.draft_prob) == (base.agree, base.draft_prob)
    assert [f["next_gate"] for f in other_draft.forecasts] == [f["next_gate"] for f in base.forecasts]
    assert [f["draft"] for f in other_draft.forecasts] != [f["draft"] for f in base.forecasts]
    other_agreement = draw(routes, EXPERTS, Rates(0.5, 0.8), seed=4)
    assert [f["draft"] for f in other_agreement.forecasts] == [f["draft"] for f in base.forecasts]
    # a higher rate only adds agreements
    assert all(more or not less for less, more in zip(other_agreement.agree, base.agree, strict=True))
    other_auc = draw(routes, EXPERTS, Rates(0.9, 0.8, 0.7, 0.6), seed=4)
    assert other_auc.agree == base.agree and other_auc.forecasts == base.forecasts


def test_the_seed_decides_everything() -> None:
    rates = Rates(0.9, 0.8, 0.7)
    assert draw(ROUTES[:50], EXPERTS, rates, seed=1) == draw(np.array(ROUTES[:50]), EXPERTS, rates, seed=1)
    assert draw(ROUTES[:50], EXPERTS, rates, seed=1) != draw(ROUTES[:50], EXPERTS, rates, seed=2)


def test_golden_draw() -> None:
    """The same on every machine and with every version of the libraries."""
    draws = draw([((0, 1), (3, 2)), ((1, 2), ())], 4, Rates(0.5, 0.8, 0.7), seed=0)
    assert draws == Draws(
        [False, True],
        [29774, 9114],
        [
            {
                "draft": (((2, 4246), (1, 7571)), ((3, 5774), (2, 21210))),
                "next_gate": ((), ((3, 13236), (0, 8053))),
            },
            {"draft": (((1, 18936), (2, 18700)), ()), "next_gate": ((), ())},
        ],
    )


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((1.5, 0.8), "field agreement: expected a number from 0 to 1, got 1.5"),
        ((0.9, -0.1), "field draft_accuracy: expected a number from 0 to 1, got -0.1"),
        ((0.9, 0.8, float("nan")), "field next_gate_accuracy: expected a number from 0 to 1, got nan"),
        ((0.9, 0.8, None, 0.4), "field confidence_auc: expected at least 0.5 and below 1, got 0.4"),
        ((0.9, 0.8, None, 1.0), "field confidence_auc: expected at least 0.5 and below 1, got 1.0"),
    ],
)
def test_impossible_rates_are_refused(rates: tuple[float, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Rates(*rates)
    assert str(caught.value) == message


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(InputError, match=r"field routed: expert 9 is out of range 0\.\.7"):
        draw([((0, 9),)], 8, Rates(0.9, 0.8), seed=0)
    with pytest.raises(InputError, match="field seed: expected an integer from 0 up, got -1"):
        draw(ROUTES[:2], 8, Rates(0.9, 0.8), seed=-1)
