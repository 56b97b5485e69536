"""`python -m training`."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "the following arguments are required: --out"),
        (["run", "--out", "x", "--minutes", "0"], "expected minutes, above 0, got '0'"),
        (["run", "--out", "x", "--threads", "none"], "expected a number from 1 to 1024, got 'none'"),
        (["run", "--out", "x", "--recipe", "huge"], "invalid choice: 'huge'"),
        (["evaluate", "nowhere", "--threads", "1"], "nowhere/run.json: cannot be read"),
        (["prompts", "nowhere"], "the following arguments are required: --out"),
        (["prompts", "nowhere", "--out", "x", "--count", "0"], "expected a number from 1 to 1024, got '0'"),
        (["prompts", "nowhere", "--out", "x"], "nowhere/run.json: cannot be read"),
    ],
)
def test_wrong_usage_is_told_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
