"""Pages quote what the benchmarks of foresight have found."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pages.foresight import ASKED, BY, pages, results
from benchmarks.pages.markers import embedded
from benchmarks.sim.foresight import settings

FOUND, WORST = results()
PLACES = list(pages(FOUND, WORST))


@pytest.mark.parametrize(("page", "name", "lines"), PLACES, ids=[f"{page.stem} {name}" for page, name, _ in PLACES])
def test_the_page_is_that_of_the_results(page: Path, name: str, lines: list[str]) -> None:
    text = page.read_text("utf-8")
    assert embedded(text, name, lines, BY) == text


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
