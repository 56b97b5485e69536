"""One thread, so that sums come in one order."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from training.corpus import Corpus, read_corpus

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty files of made-up source: what a small tokenizer and model can be trained on."""
    root = tmp_path_factory.mktemp("made_up")
    chance = random.Random(0)
    for number in range(40):
        lines = [f"def function_{chance.randrange(90)}(value):\n    return value + {number}\n" for _ in range(40)]
        (root / f"module_{number}.py").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def corpus(made_up: Path) -> Corpus:
    """Those files; some are held out."""
    return read_corpus(made_up, "made up", frozenset(path.stem for path in made_up.iterdir()))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder like that of the standard library."""
    for path in ("ast.py", "json/decoder.py", "json/tests/test_x.py", "encodings/utf_8.py", "site-packages/x.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"# {path}\n", encoding="utf-8")
    for number in range(60):
        (tmp_path / "json" / f"part_{number}.py").write_text(f"x = {number}\n", encoding="utf-8")
    (tmp_path / "json" / "latin.py").write_bytes(b"# \xe9\n")
    (tmp_path / "_sysconfigdata_linux.py").write_text("here = 1\n", encoding="utf-8")
    return tmp_path
