"""What becomes of drafted tokens, and how sure that is."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from training.acceptance import rate
from training.likelihood import spread


def test_rates_by_hand() -> None:
    assert rate([(2, 4), (2, 4)]) == (0.5, 0.0, 8)
    # Of shares 1/4 and 3/4: the standard deviation is sqrt(1/8), so the mean's error is 1/4.
    assert rate([(1, 4), (3, 4)]) == pytest.approx((0.5, 0.25, 8))
    assert rate([(3, 4)]) == (0.75, None, 4)


def test_long_requests_weigh_more() -> None:
    assert rate([(0, 1), (9, 9)]).share == 0.9


def test_windows_are_spread_over_all_of_the_text() -> None:
    windows = torch.arange(190)[:, None]
    chosen = spread(windows, 96).flatten().tolist()
    assert len(set(chosen)) == 96 and chosen[0] == 0 and chosen[-1] == 188
    assert max(b - a for a, b in pairwise(chosen)) == 2
    assert spread(windows, 200) is windows
