"""Which files are learned from, and which are held out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spmoe.errors import InputError
from training.corpus import is_held_out, read_corpus, standard_library
from training.recipe import MICRO
from training.tokenizer import encode, train_tokenizer
from training.tokens import Batches, windows

MODULES = frozenset({"ast", "json", "encodings", "site-packages"})


def test_the_split_is_disjoint_complete_and_by_the_path_alone(library: Path) -> None:
    corpus = read_corpus(library, "test", MODULES)
    learned, held_out = ([each.path for each in part] for part in (corpus.learned, corpus.held_out))
    assert sorted(learned + held_out) == sorted(
        ["ast.py", "json/decoder.py", *(f"json/part_{n}.py" for n in range(60))]
    )
    assert learned == sorted(learned) and held_out == sorted(held_out)
    assert not set(learned) & set(held_out)
    assert all(map(is_held_out, held_out)) and not any(map(is_held_out, learned))
    (library / "json" / "part_0.py").unlink()
    fewer = read_corpus(library, "test", MODULES)
    assert {each.path for each in fewer.held_out} == set(held_out) - {"json/part_0.py"}


def test_the_fingerprint_tells_bytes_and_names(library: Path) -> None:
    before = read_corpus(library, "test", MODULES).fingerprint
    assert read_corpus(library, "another name", MODULES).fingerprint == before
    (library / "ast.py").write_text("# changed\n", encoding="utf-8")
    changed = read_corpus(library, "test", MODULES).fingerprint
    (library / "ast.py").rename(library / "json" / "ast.py")
    assert len({before, changed, read_corpus(library, "test", MODULES).fingerprint}) == 3


def test_of_the_interpreter_only_its_own_library_is_read() -> None:
    corpus = standard_library()
    paths = [each.path for each in (*corpus.learned, *corpus.held_out)]
    assert "json/decoder.py" in paths
    assert not [path for path in paths if {"test", "tests", "encodings", "site-packages"} & set(path.split("/"))]
    assert not [path for path in paths if path.startswith("_sysconfigdata")]
    assert 0.01 < len(corpus.held_out) / len(paths) < 0.1


def test_an_empty_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected source files of Python's standard library, found too few"):
        read_corpus(tmp_path, "test", MODULES)


def test_the_tokenizer_is_the_same_again_and_gives_back_any_text(library: Path) -> None:
    learned = read_corpus(library, "test", MODULES).learned
    first, second = (train_tokenizer(learned, 300) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    text = "def é(x):\n\treturn  '\U0001f40d'  # \x00\n"
    ids = first(text)["input_ids"]
    assert ids[0] == 0 and first.decode(ids, skip_special_tokens=True) == text
    assert encode(first, learned[:2]).count(0) == encode(first, learned[:2]).count(1) == 2


def test_windows_overlap_by_the_token_between_them() -> None:
    assert windows(torch.arange(10), 3).tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]


def test_an_epoch_reads_every_window_once_and_the_next_in_another_order() -> None:
    stream = torch.arange(32 * 41, dtype=torch.int16)  # 40 windows, 10 steps
    batches = Batches(stream, MICRO)
    epochs = [torch.cat([batches.at(10 * epoch + step) for step in range(10)]) for epoch in range(2)]
    for epoch in epochs:
        assert (epoch.diff(dim=1) == 1).all()
        starts = epoch[:, 0].sort().values
        assert (starts.diff() == 32).all() and 0 <= starts[0] < 32
    assert not torch.equal(*epochs)
    assert torch.equal(Batches(stream, MICRO).at(13), batches.at(13))
