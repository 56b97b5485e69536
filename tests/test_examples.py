"""Every file of examples/ runs and prints something; those that take a trace get a small one."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.sim.files import small_trace

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
TAKES_A_TRACE = ("replay.py", "add_a_policy.py")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "engine" in path.read_text(encoding="utf-8"):
        pytest.importorskip("torch", reason="the engine needs torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), *([str(small_trace(tmp_path))] if path.name in TAKES_A_TRACE else [])])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
