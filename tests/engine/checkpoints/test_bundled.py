"""The pair that comes with the project: whole, small, and where it is looked for."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
pytest.importorskip("transformers", reason="the engine needs transformers")

from engine.__main__ import main  # noqa: E402
from engine.checkpoints import bundled as shipped  # noqa: E402
from engine.checkpoints.bundled import EXAMPLE, bundled_pair  # noqa: E402
from engine.checkpoints.checkpoint import read_checkpoint  # noqa: E402
from engine.checkpoints.checksums import SUMS, check_sums  # noqa: E402
from engine.cli.prompts import encode_prompts, number_prompts  # noqa: E402
from engine.options import Options  # noqa: E402
from engine.plan import make_plan  # noqa: E402
from spmoe.errors import InputError  # noqa: E402
from tests.paths import ROOT  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_network")

Out = pytest.CaptureFixture[str]


def test_its_files_are_those_that_its_sums_say() -> None:
    for folder in bundled_pair():
        listed = {line.split()[1] for line in (folder / SUMS).read_text().splitlines()}
        assert listed == {path.name for path in folder.iterdir()} - {SUMS}
        check_sums(folder)


def test_it_is_small_and_stored_in_16_bits() -> None:
    pair = bundled_pair()
    assert sum(path.stat().st_size for folder in pair for path in folder.iterdir()) <= 24_000_000
    for folder in pair:
        assert {each.dtype for each in read_checkpoint(folder).tensors.values()} == {torch.bfloat16}


def test_draft_and_target_fit() -> None:
    plan = make_plan(*bundled_pair(), Options(device="cpu"))
    assert plan.fallback == "" and plan.layer_map == tuple(range(8))
    assert (plan.blueprint.geometry.name, plan.draft_shape and plan.draft_shape.name) == ("pico-target", "pico-draft")
    assert plan.setting.shape == (8, 8, 2) and plan.context == 256


def test_there_is_room_for_what_runs_by_default() -> None:
    (prompt,) = encode_prompts(bundled_pair().target, number_prompts([EXAMPLE]), None)
    assert 1 < len(prompt) <= 128


def test_it_says_what_plain_transformers_say(capsys: Out) -> None:
    words = ["--prompt", EXAMPLE, "import ", "    for line in", "--max-new-tokens", "48", "--cache", "0.5"]
    assert main(["run", *words, "--dtype", "float64", "--against-plain"]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("plain   the same ") and last.endswith(" tokens for 3 prompts from plain transformers")


def test_an_installation_carries_it() -> None:
    """In the package where `engine.checkpoints.bundled` looks, with all files."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    assert "engine.models" in tool["packages"] and tool["package-dir"]["engine.models"] == "models"
    held = {path for pattern in tool["package-data"]["engine.models"] for path in (ROOT / "models").glob(pattern)}
    for folder in bundled_pair():
        assert set(folder.iterdir()) <= held


def test_where_it_is_missing_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setattr(shipped, "_MODELS", tmp_path)
    with pytest.raises(InputError, match="the pair that comes with the project is missing; expected --model PATH"):
        bundled_pair()
    assert main(["run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
