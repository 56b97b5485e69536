"""The result file of fidelity is what the simulator makes of the run files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.engine.fidelity import RESULT, TRACE, run_file
from sim.studies.fidelity import fidelity


@pytest.mark.parametrize("file", [run_file(1.0, 0.5), run_file(3.0, 0.25)], ids=lambda file: file.stem)
def test_the_simulator_says_the_same_again(file: Path) -> None:
    document = json.loads(RESULT.read_text("utf-8"))
    expected = [each for each in document["policies"] if each["run"] == file.name]
    assert len(expected) > 20
    assert fidelity([file], TRACE).to_json()["policies"] == expected
