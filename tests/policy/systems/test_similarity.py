"""Stored matrices against one that comes in row by row: cosines by hand, and rows that come again."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spmoe.policy.systems.similarity import ONE, MatrixStore

LAYERS, EXPERTS = 3, 4
MATRICES = st.lists(
    st.lists(st.integers(0, 9), min_size=EXPERTS, max_size=EXPERTS), min_size=LAYERS, max_size=LAYERS
).map(lambda rows: np.array(rows, np.int64))
ROWS = st.tuples(
    st.integers(0, LAYERS - 1), st.lists(st.integers(0, 9), min_size=EXPERTS, max_size=EXPERTS).map(np.array)
)


def filled(matrices: list[np.ndarray], capacity: int = 8) -> MatrixStore:
    store = MatrixStore(capacity, *matrices[0].shape)
    for index, matrix in enumerate(matrices):
        store.put(matrix, index)
    return store


def as_floats(cosines: np.ndarray) -> list[float]:
    assert cosines.dtype == np.int64
    return [int(cosine) / ONE for cosine in cosines]


def test_by_hand() -> None:
    store = filled([np.array([[3, 4], [1, 0]]), np.array([[0, 2], [5, 12]])])
    store.see(0, np.array([4, 3]))
    assert as_floats(store.row_cosines(0)) == pytest.approx([24 / 25, 3 / 5])
    assert as_floats(store.cosines()) == as_floats(store.row_cosine_sums()) == as_floats(store.row_cosines(0))
    store.see(1, np.array([0, 2]))
    assert as_floats(store.row_cosines(1)) == pytest.approx([0, 12 / 13])
    assert as_floats(store.row_cosine_sums()) == pytest.approx([24 / 25, 3 / 5 + 12 / 13])
    lengths = [sqrt(25 + 1), sqrt(4 + 169)]
    assert as_floats(store.cosines()) == pytest.approx([24 / sqrt(29) / lengths[0], 30 / sqrt(29) / lengths[1]])


def test_what_is_empty_is_like_nothing() -> None:
    store = filled([np.array([[0, 0], [1, 1]]), np.array([[2, 2], [0, 0]])])
    store.see(0, np.array([1, 1]))
    assert as_floats(store.row_cosines(0)) == pytest.approx([0, 1])
    store.see(1, np.array([0, 0]))
    assert as_floats(store.row_cosines(1)) == [0, 0]
    assert as_floats(store.row_cosine_sums()) == as_floats(store.row_cosines(0))


def test_a_full_store_replaces() -> None:
    first, second, third = (np.full((1, 2), value) for value in (1, 2, 3))
    store = filled([first, second], capacity=2)
    assert store.full
    store.see(0, np.array([1, 0]))
    store.put(third, 0)
    assert store.stored == 2
    assert store.matrix(0).tolist() == [[3, 3]]
    assert store.matrix(1).tolist() == [[2, 2]]
    assert as_floats(store.cosines()) == [0, 0]  # A new probe, with nothing seen.
    with pytest.raises(ValueError, match="no place 2 among 2 of 2"):
        store.put(first, 2)
    with pytest.raises(ValueError, match="no place 1 among 0 of 2"):
        MatrixStore(2, 1, 2).put(first, 1)
    with pytest.raises(ValueError, match="at least one"):
        MatrixStore(0, 1, 2)


@given(st.lists(MATRICES, min_size=1, max_size=5), st.lists(ROWS, max_size=10))
def test_rows_that_come_again_replace_themselves(
    matrices: list[np.ndarray], rows: list[tuple[int, np.ndarray]]
) -> None:
    store, at_once = filled(matrices), filled(matrices)
    last = dict(rows)
    for layer, row in rows:
        store.see(layer, row)
    for layer in sorted(last):
        at_once.see(layer, last[layer])
    for probed in (store, at_once):
        assert (
            probed.row_cosine_sums().tolist()
            == sum((probed.row_cosines(layer) for layer in last), np.zeros(len(matrices), np.int64)).tolist()
        )
    assert store.cosines().tolist() == at_once.cosines().tolist()
    assert store.row_cosine_sums().tolist() == at_once.row_cosine_sums().tolist()


@given(st.lists(MATRICES, min_size=1, max_size=5), MATRICES)
def test_cosines_are_those_of_the_textbook(matrices: list[np.ndarray], probe: np.ndarray) -> None:
    store = filled(matrices)
    for layer, row in enumerate(probe):
        store.see(layer, row)
    for cosine, matrix in zip(as_floats(store.cosines()), matrices, strict=True):
        lengths = sqrt((matrix**2).sum() * (probe**2).sum())
        assert cosine == pytest.approx((matrix * probe).sum() / lengths if lengths else 0, abs=1e-8)
