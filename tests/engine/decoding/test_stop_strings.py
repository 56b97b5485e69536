"""Stop strings: the text ends where the first of them is complete, however it comes in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the engine needs torch")

from engine.decoding.stop_strings import StopStrings
from spmoe.errors import InputError

LETTERS = st.text("ab", max_size=3)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """By the definition: read on until a stop string is complete, and take it away."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(st.lists(LETTERS, max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_any_pieces_give_what_the_definition_says(pieces: list[str], stops: list[str]) -> None:
    found = StopStrings(stops)
    shown = "".join(map(found.feed, pieces))
    expected, stopped = cut("".join(pieces), stops)
    assert (shown + found.finish(), found.found) == (expected, stopped)


def test_what_may_become_one_is_held_back() -> None:
    stops = StopStrings(["</s>", "\n\n"])
    assert [stops.feed(piece) for piece in ("one\n", "two<", "/", "s", "x")] == ["one", "\ntwo", "", "", "</sx"]
    assert stops.feed("\n\nrest") == "" and stops.found and stops.feed("more") == stops.finish() == ""


@pytest.mark.parametrize("stops", [[""], [1], ["a", None]])
def test_bad_stop_strings_get_one_line(stops: list[str]) -> None:
    with pytest.raises(InputError, match=r"^stop: expected texts that are not empty, got "):
        StopStrings(stops)
