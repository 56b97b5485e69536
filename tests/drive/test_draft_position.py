"""How many tokens a draft reads, followed by hand."""

from __future__ import annotations

from spmoe.drive.draft_position import Unread


def test_a_request_by_hand() -> None:
    unread = Unread()
    unread.request_begun()
    unread.round_begun(10)  # Ten tokens of prompt, and the pending one.
    assert [unread.draft() for _ in range(3)] == [11, 1, 1]
    unread.round_ended(12)  # One of three drafted tokens stands.
    unread.round_begun(12)
    assert [unread.draft() for _ in range(2)] == [1, 1]
    unread.round_ended(15)  # Both stand: the second was only proposed.
    unread.round_begun(15)
    assert [unread.draft()] == [2]


def test_rounds_without_drafting_add_up() -> None:
    unread = Unread()
    unread.round_begun(0)
    unread.round_ended(1)
    unread.round_begun(1)
    unread.round_ended(2)
    unread.round_begun(2)
    assert unread.draft() == 3


def test_a_request_begins_anew() -> None:
    unread = Unread()
    unread.round_begun(4)
    assert unread.draft() == 5
    unread.request_begun()
    unread.round_begun(2)
    assert unread.draft() == 3
