"""Prefetch selection (SP-MoE): from the forecasts of a window to ranked experts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spmoe.policy.sp_moe.gates import select
from tests.scheduler.events import forecast

WINDOWS = st.lists(st.randoms(use_true_random=False).map(lambda rng: forecast(rng, 6)), max_size=5)


def test_by_hand() -> None:
    window = [((2, 40), (0, 20), (5, 10)), ((0, 30), (2, 5)), ()]
    assert select(window, 1) == [(2, 40), (0, 30)]
    assert select(window, 2) == [(0, 50), (2, 45)]
    assert select(window, 3) == [(0, 50), (2, 45), (5, 10)]
    assert select([], 2) == select([(), ()], 2) == []
    assert select([((4, 9),)], 1) == [(4, 9)]


def test_ties_go_by_expert() -> None:
    assert select([((3, 7),), ((1, 7),), ((2, 8),)], 1) == [(2, 8), (1, 7), (3, 7)]


@given(WINDOWS, st.integers(1, 6))
def test_merges_and_ranks(window: list[tuple[tuple[int, int], ...]], top_n: int) -> None:
    chosen = select(window, top_n)
    heads = [pair for forecast in window for pair in forecast[:top_n]]
    assert sum(weight for _, weight in chosen) == sum(prob for _, prob in heads)
    assert {expert for expert, _ in chosen} == {expert for expert, _ in heads}
    assert len({expert for expert, _ in chosen}) == len(chosen) <= top_n * len(window)
    assert chosen == sorted(chosen, key=lambda item: (-item[1], item[0]))


@given(WINDOWS, st.integers(1, 6), st.randoms(use_true_random=False))
def test_the_order_of_tokens_does_not_matter(
    window: list[tuple[tuple[int, int], ...]], top_n: int, rng: object
) -> None:
    shuffled = list(window)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert select(shuffled, top_n) == select(window, top_n)
