"""The results of foresight reach what was asked."""

from __future__ import annotations

import pytest

from benchmarks.files import read_json
from benchmarks.pages.foresight import ASKED
from benchmarks.sim.foresight import RESULT, settings
from benchmarks.sim.worst_case import RESULT as WORST_CASE

FOUND, WORST = read_json(RESULT), read_json(WORST_CASE)


def test_the_results_are_of_all_seeds_and_settings() -> None:
    assert FOUND["seeds"] == 20
    assert {(row["bits"], row["cache"]) for row in FOUND["chosen"]} == set(settings())


@pytest.mark.parametrize("bits_cpu", ASKED, ids=str)
def test_what_was_asked_of_all_parts_is_reached(bits_cpu: tuple[str, int]) -> None:
    found = {row["cache"]: row["tpot"] for row in FOUND["chosen"] if (row["bits"], row["cpu"]) == bits_cpu}
    for share, most in zip((0.25, 0.5, 0.75), map(float, ASKED[bits_cpu].split(", ")), strict=True):
        assert found[share] <= most


def test_no_peer_is_more_than_a_hundredth_ahead() -> None:
    assert WORST["worst"]["ratio"] <= 1.01
    assert max(row["ratio"] for row in WORST["comparisons"]) == WORST["worst"]["ratio"]
