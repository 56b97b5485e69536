"""When a draft is too slow to go on past the window."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the engine needs torch")

from engine.execution.draft_speed import DraftSpeed


def draft(speed: DraftSpeed, *durations: int) -> None:
    """A round that drafts tokens, each in so many ns."""
    now = 1000
    speed.round_begun(now)
    for duration in durations:
        now += duration
        speed.token_drafted(now)
    speed.verification_begun()


def test_a_draft_as_fast_as_expected_is_not_slow() -> None:
    speed = DraftSpeed(100)
    assert not speed.slow
    for _ in range(50):
        draft(speed, 120, 120)
    assert not speed.slow


def test_a_slow_draft_is_noticed_after_some_tokens_and_so_is_a_faster_one() -> None:
    speed = DraftSpeed(100)
    draft(speed, 200)
    assert not speed.slow
    draft(speed, *[200] * 8)
    assert speed.slow
    draft(speed, *[100] * 20)
    assert not speed.slow


def test_reading_the_prompt_does_not_count() -> None:
    speed = DraftSpeed(100)
    speed.request_begun()
    draft(speed, 10**6)
    assert not speed.slow
    draft(speed, 10**6)
    assert speed.slow


def test_tokens_past_the_window_do_not_count() -> None:
    speed = DraftSpeed(100)
    draft(speed, 100)
    for now in range(10**6, 10**8, 10**6):
        speed.token_drafted(now)
    assert not speed.slow
