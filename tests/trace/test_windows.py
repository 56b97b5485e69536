"""Windows cut by hand."""

from __future__ import annotations

import pytest

from spmoe.trace.schema import RejectedLine, TokenLine
from spmoe.trace.windows import Window, fixed_windows, requests, window


def token(position: int, agree: bool = True, rejected: int = 0) -> TokenLine:
    """A token routed to the expert of its position; inputs rejected behind it to 100, 101, ..."""
    after = tuple(RejectedLine(((100 + number,),)) for number in range(rejected))
    return TokenLine(0, position, ((position,),), agree, rejected=after)


def routes(cut: Window) -> list[int]:
    """The expert of every input."""
    return [line.routed[0][0] for line in cut.inputs]


def test_a_rejection_within_the_window() -> None:
    lines = [token(0), token(1, agree=False, rejected=2), token(2), token(3), token(4)]
    cut = window(lines, 4)
    assert (routes(cut), cut.accepted, cut.stand_ins) == ([0, 1, 100, 101, 4], 1, 1)


def test_a_short_window_is_as_long_as_the_request_where_nothing_more_is_recorded() -> None:
    cut = window([token(0), token(1)], 4)
    assert (routes(cut), cut.accepted, cut.stand_ins) == ([0, 1], 1, 0)


@pytest.mark.parametrize("agree", [False, True])
def test_a_request_that_ended_inside_its_window(agree: bool) -> None:
    # Whether the target would have gone on as the draft did is no matter: the request has no more tokens.
    cut = window([token(0), token(1, agree, rejected=3)], 4)
    assert (routes(cut), cut.accepted, cut.stand_ins) == ([0, 1, 100, 101, 102], 1, 0)


def test_a_request_that_ended_with_the_first_token_of_its_window() -> None:
    cut = window([token(0, rejected=4)], 4)
    assert (routes(cut), cut.accepted, cut.stand_ins) == ([0, 100, 101, 102, 103], 0, 0)


@pytest.mark.parametrize(
    ("gamma", "found"), [(1, [0, 1]), (2, [0, 1, 100]), (3, [0, 1, 100, 101]), (9, [0, 1, 100, 101])]
)
def test_what_followed_the_end_is_taken_up_to_gamma_and_as_far_as_it_is_recorded(gamma: int, found: list[int]) -> None:
    assert routes(window([token(0), token(1, rejected=2)], gamma)) == found


def test_what_followed_the_end_is_left_out_where_the_window_does_not_get_there() -> None:
    cut = window([token(0, agree=False, rejected=1), token(1), token(2, rejected=3)], 4)
    assert (routes(cut), cut.accepted, cut.stand_ins) == ([0, 100, 2], 0, 1)


def test_windows_up_to_the_end_of_every_request() -> None:
    other = token(0, rejected=1)._replace(request=1)
    lines = [token(0), token(1), token(2), token(3, rejected=1), other]
    found = [[routes(cut) for cut in fixed_windows(request, 2)] for request in requests(lines)]
    assert found == [[[0, 1, 2], [3, 100]], [[0, 100]]]
