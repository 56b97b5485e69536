"""Exact counts and times of every policy on a seeded synthetic trace.

A difference means that decisions or times have changed.  Where that was meant, `python -m tests.golden.rewrite`.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from spmoe.policy.registry import RECIPES
from tests.golden.runs import COUNTS, SETTINGS, counts_in, digest, golden_trace, text

GOLDEN: dict[str, Any] = json.loads(COUNTS.read_text(encoding="utf-8"))


@cache
def found(setting: str) -> dict[str, Any]:
    return counts_in(setting, golden_trace())


def test_the_trace_is_the_same() -> None:
    # If only this and the others fail together, it is the trace that changed (a generator, numpy), not the policies.
    assert digest(golden_trace()) == GOLDEN["trace"]


def test_the_settings_are_the_same() -> None:
    assert list(GOLDEN["runs"]) == list(SETTINGS)


# One group per setting: each replay of all policies is made by one worker.
@pytest.mark.parametrize("policy", ["bound", *RECIPES])
@pytest.mark.parametrize("setting", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in SETTINGS])
def test_counts(setting: str, policy: str) -> None:
    assert found(setting)[policy] == GOLDEN["runs"][setting][policy]


def test_the_file_is_as_the_command_writes_it() -> None:
    assert text(GOLDEN) == COUNTS.read_text(encoding="utf-8")
