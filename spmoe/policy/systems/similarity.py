"""Which of many stored matrices is most like one that becomes known layer by layer.

Dot products and squared norms are exact integers.  A cosine is made of them by single float64 operations, which are the
same on every machine, and turned into an integer before anything is added or compared.
"""

from __future__ import annotations

import numpy as np

from spmoe.policy.parts.fixed_point import Ints

ONE = 1 << 30
"""A cosine of 1."""


class MatrixStore:
    """Matrices of layers x experts, and the cosines between each of them and the rows of another, the *probe*.

    Entries are numbers >= 0; the squares of a matrix must add up to less than 2^63.  A row of the probe costs one
    product with that row of all entries; rows seen before are not looked at again.
    """

    def __init__(self, capacity: int, layers: int, experts: int) -> None:
        """An empty store for `capacity` matrices; ValueError for fewer than one."""
        if capacity < 1:
            raise ValueError("a store of matrices needs room for at least one")
        self.stored = 0
        self._capacity = capacity
        # The rows of one layer lie together, for they are compared together.
        self._rows = np.zeros((layers, capacity, experts), np.int64)
        self._squares = np.zeros((layers, capacity), np.int64)
        self.begin()

    @property
    def full(self) -> bool:
        """Whether a new matrix has to take the place of another."""
        return self.stored == self._capacity

    def begin(self) -> None:
        """A new probe, of which nothing is known yet."""
        layers, capacity = self._squares.shape
        self._probe_squares = [0] * layers
        self._dots = np.zeros((layers, capacity), np.int64)
        # The same, summed over the rows seen so far.
        self._probe_square = 0
        self._dot = np.zeros(capacity, np.int64)
        self._square = np.zeros(capacity, np.int64)
        self._cosine_sum = np.zeros(capacity, np.int64)
        self._seen = [False] * layers

    def see(self, layer: int, row: Ints) -> None:
        """The probe's row of `layer`; it may have had another before."""
        if self._seen[layer]:
            self._cosine_sum[: self.stored] -= self.row_cosines(layer)
        else:
            self._seen[layer] = True
            self._square += self._squares[layer]
        dots, square = self._rows[layer, : self.stored] @ row, int(row @ row)
        self._dot[: self.stored] += dots - self._dots[layer, : self.stored]
        self._dots[layer, : self.stored] = dots
        self._probe_square += square - self._probe_squares[layer]
        self._probe_squares[layer] = square
        self._cosine_sum[: self.stored] += self.row_cosines(layer)

    def row_cosines(self, layer: int) -> Ints:
        """Per entry, the cosine between its row of `layer` and the probe's; 0 where either is empty."""
        return self._cosines(self._dots[layer], self._probe_squares[layer], self._squares[layer])

    def row_cosine_sums(self) -> Ints:
        """Per entry, the sum of the cosines of all rows seen: their mean, but for a factor."""
        return self._cosine_sum[: self.stored]

    def cosines(self) -> Ints:
        """Per entry, the cosine between all rows seen, laid end to end, and the entry's rows of the same layers."""
        return self._cosines(self._dot, self._probe_square, self._square)

    def matrix(self, index: int) -> Ints:
        """An entry, layers x experts; not to be changed."""
        return self._rows[:, index]

    def put(self, matrix: Ints, index: int) -> None:
        """Store a matrix in place of entry `index`, or behind the last where `index` is their number; ends the probe.

        ValueError where there is neither such an entry nor room for one.
        """
        if not 0 <= index <= min(self.stored, self._capacity - 1):
            raise ValueError(f"no place {index} among {self.stored} of {self._capacity} matrices")
        self._rows[:, index] = matrix
        self._squares[:, index] = (matrix * matrix).sum(axis=1)
        self.stored = max(self.stored, index + 1)
        self.begin()

    def _cosines(self, dots: Ints, probe_square: int, squares: Ints) -> Ints:
        lengths = np.sqrt(np.maximum(squares[: self.stored], 1).astype(np.float64)) * np.sqrt(
            np.float64(max(probe_square, 1))
        )
        scaled: Ints = (dots[: self.stored].astype(np.float64) / lengths * np.float64(ONE)).astype(np.int64)
        return scaled
