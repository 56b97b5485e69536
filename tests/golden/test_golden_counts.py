"""Exact counts and times of every policy on a seeded synthetic trace.

A difference means that decisions or times have changed.  Where that was meant, `python -m tests.golden.rewrite`.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from spmoe.policy.registry import RECIPES
from tests.golden.runs import COUNTS, SETTINGS, counts, text

GOLDEN: dict[str, Any] = json.loads(COUNTS.read_text(encoding="utf-8"))


@cache
def found() -> dict[str, Any]:
    return counts()


def test_the_trace_is_the_same() -> None:
    # If only this and the others fail together, it is the trace that changed (a generator, numpy), not the policies.
    assert found()["trace"] == GOLDEN["trace"]


@pytest.mark.parametrize("policy", ["bound", *RECIPES])
@pytest.mark.parametrize("setting", [f"{slots} slots, gamma {gamma}" for slots, gamma in SETTINGS])
def test_counts(setting: str, policy: str) -> None:
    assert found()["runs"][setting][policy] == GOLDEN["runs"][setting][policy]


def test_the_file_is_as_the_command_writes_it() -> None:
    assert text(GOLDEN) == COUNTS.read_text(encoding="utf-8")
