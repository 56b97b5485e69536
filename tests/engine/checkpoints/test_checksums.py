"""Checkpoints with sums: what is damaged, missing, exchanged or foreign is named before anything is loaded."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the engine needs torch")

from benchmarks.engine.random_pair import write_random_pair
from engine.__main__ import main
from engine.checkpoints import model_pair as pair_module
from engine.checkpoints.checksums import check_sums
from engine.engine import Engine
from spmoe.errors import InputError

pytestmark = pytest.mark.usefixtures("no_network")

WEIGHTS = "model.safetensors"


def add_sums(folder: Path) -> None:
    """As `sha256sum * > SHA256SUMS` would."""
    files = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.fixture(scope="module")
def summed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    pair = write_random_pair(tmp_path_factory.mktemp("pair"))
    for folder in pair:
        add_sums(folder)
    return pair


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with two files and their sums."""
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_bytes(b"{}")
    add_sums(tmp_path)
    return tmp_path


def test_what_is_listed_may_be_there(small: Path) -> None:
    check_sums(small)
    (small / "README.md").write_text("not weights, and not listed")
    check_sums(small)
    sums = small / "SHA256SUMS"
    sums.write_text(re.sub(r"^\w+", lambda found: found[0].upper(), sums.read_text(), flags=re.M).replace("  ", " *"))
    check_sums(small)
    sums.unlink()
    (small / WEIGHTS).write_bytes(b"nobody says what it should be")
    check_sums(small)


def flip(path: Path) -> None:
    """One bit of one byte."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def pipe(path: Path) -> None:
    """Whoever read it would wait for ever."""
    path.unlink()
    os.mkfifo(path)


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


def rewritten(change: Callable[[str], str]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        sums = folder / "SHA256SUMS"
        sums.write_text(change(sums.read_text()))

    return rewrite


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: flip(folder / "a.safetensors"), ["a.safetensors: damaged or exchanged", "got "]),
        (lambda folder: (folder / "config.json").write_bytes(b"{ }"), ["config.json: damaged or exchanged"]),
        (lambda folder: (folder / "config.json").write_bytes(b""), ["config.json: damaged or exchanged"]),
        (lambda folder: (folder / "config.json").unlink(), ["config.json: missing; SHA256SUMS lists it"]),
        (lambda folder: (folder / "b.safetensors").write_bytes(b""), ["b.safetensors: SHA256SUMS does not list it"]),
        (rewritten(lambda text: ""), ["SHA256SUMS:1: expected a SHA-256 sum"]),
        (rewritten(lambda text: text + "?\n"), ["SHA256SUMS:3: expected a SHA-256 sum"]),
        (rewritten(lambda text: text[1:]), ["SHA256SUMS:1: expected a SHA-256 sum"]),
        (rewritten(lambda text: text.replace("config.json", "")), ["SHA256SUMS:2: expected a SHA-256 sum"]),
        (rewritten(lambda text: text + text), ["SHA256SUMS:3: a.safetensors is listed twice"]),
        (rewritten(lambda text: text.replace("config", "../config")), ["SHA256SUMS:2", "'../config.json'"]),
        (rewritten(lambda text: text.replace("config", "x/../../config")), ["expected a file below this folder"]),
        (rewritten(lambda text: text.replace("config.json", "/etc/passwd")), ["'/etc/passwd'"]),
        (rewritten(lambda text: text.replace("config.json", ".")), [": expected a file; SHA256SUMS lists it"]),
        (rewritten(lambda text: text.replace("config.json", "a\0b")), ["a\0b: missing; SHA256SUMS lists it"]),
        (lambda folder: pipe(folder / "config.json"), ["config.json: expected a file; SHA256SUMS lists it"]),
        (lambda folder: dangle(folder / "SHA256SUMS"), ["SHA256SUMS: cannot be read: No such file"]),
        (lambda folder: (folder / "SHA256SUMS").write_bytes(b"\xff"), ["SHA256SUMS: expected text in UTF-8"]),
    ],
)
def test_one_line_says_what_is_wrong(small: Path, spoil: Callable[[Path], object], words: list[str]) -> None:
    spoil(small)
    with pytest.raises(InputError) as caught:
        check_sums(small)
    said = str(caught.value)
    assert said.startswith(str(small)) and "\n" not in said
    for word in words:
        assert word in said


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
@pytest.mark.parametrize("which", ["target", "draft"])
def test_a_flipped_bit_is_refused_before_anything_is_read(
    summed: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str, name: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(summed[which == "draft"], folder)
    flip(folder / name)
    target, draft = (folder, summed[1]) if which == "target" else (summed[0], folder)
    message = f"{folder / name}: damaged or exchanged"
    for command in (["run", "--prompt", "hi"], ["record", "--prompts", __file__, "--out", "never"]):
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("hi\n")
        words = [str(prompts) if word == __file__ else word for word in command]
        words = [str(tmp_path / word) if word == "never" else word for word in words]
        assert main([*words, "--model", str(target), "--draft", str(draft)]) == 2
        out, said = capsys.readouterr()
        assert out == "" and said.startswith(f"error: {message}") and said.count("\n") == 1
    with pytest.raises(InputError, match=re.escape(message)):
        Engine.from_pretrained(target, draft)


def test_weights_of_the_other_model(
    summed: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its sums or without: the target's weights in place of the draft's."""
    folder = tmp_path / "draft"
    shutil.copytree(summed[1], folder)
    shutil.copy(summed[0] / WEIGHTS, folder / WEIGHTS)
    words = ["run", "--model", str(summed[0]), "--draft", str(folder), "--prompt", "hi"]
    assert main(words) == 2
    assert f"{folder / WEIGHTS}: damaged or exchanged" in capsys.readouterr().err
    (folder / "SHA256SUMS").unlink()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {folder}: no tensor for model.layers.0.mlp.") and said.count("\n") == 1


def test_folders_in_each_others_place(summed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--model", str(summed[1]), "--draft", str(summed[0]), "--prompt", "hi"]) == 2
    assert "MistralForCausalLM has no routed experts" in capsys.readouterr().err


def test_every_folder_is_summed_once_in_a_run(summed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def note(folder: Path) -> None:
        seen.append(folder)
        check_sums(folder)

    monkeypatch.setattr(pair_module, "check_sums", note)
    target, draft = map(str, summed)
    asked = ["--prompt", "hi", "--max-new-tokens", "4"]
    assert main(["run", "--model", target, "--draft", draft, *asked, "--against-plain"]) == 0
    assert seen == [*summed]
    seen.clear()
    assert main(["run", "--model", target, "--draft", target, *asked]) == 0
    assert seen == [summed[0]]
