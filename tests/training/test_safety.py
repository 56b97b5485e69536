"""Nothing that a run writes or reads can run code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.paths import ROOT

FILES = sorted((ROOT / "training").rglob("*.py"))
REFUSED = {"torch.load", "torch.save", "eval", "exec"}
PICKLES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_pickles(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in REFUSED
        elif isinstance(node, ast.Import):
            assert not PICKLES & {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in PICKLES
            assert not (node.module == "torch" and {"load", "save"} & {alias.name for alias in node.names})


def test_the_engine_and_the_core_do_not_know_the_recipe() -> None:
    for package in ("spmoe", "sim", "engine"):
        for path in (ROOT / package).rglob("*.py"):
            assert "training" not in {
                (node.module or "").partition(".")[0]
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.ImportFrom)
            }, path
