"""`engine chat` as a user has it: lines in, answers out."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the engine needs torch")

from benchmarks.engine.random_pair import write_random_pair
from engine.__main__ import main

Out = pytest.CaptureFixture[str]

TEMPLATE = "{% for each in messages %}<{{ each.role }}>{{ each.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    target, draft = write_random_pair(tmp_path_factory.mktemp("pair"))
    path = target / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    return ["--model", str(target), "--draft", str(draft)]


def talk(lines: str, *options: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return main(["chat", *options, "--dtype", "float64"])


def test_each_line_is_answered_and_the_turns_before_are_kept(
    pair: list[str], capfd: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "Hello\n\n/stats\nAnd then?\n/stats\n/clear\n/what\nHello\n/exit\nnever\n"
    assert talk(lines, *pair, "--max-new-tokens", "8", monkeypatch=monkeypatch) == 0
    text, said = capfd.readouterr()
    answers = text.split("\n")
    assert len(answers) >= 4
    stats = [line for line in said.splitlines() if "answers" in line]
    assert stats[0].startswith("1 answers, ") and "0 of " in stats[0]
    kept, asked = (int(word) for word in stats[1].split("; ")[1].split()[:3:2])
    assert 0 < kept < asked and "hits" in stats[1] and "tokens/s" in stats[1] and "accepted" in stats[1]
    assert sum("/stats: what it took" in line for line in said.splitlines()) == 2


def test_a_line_too_long_is_not_answered_and_the_chat_goes_on(
    pair: list[str], capfd: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "x" * 90 + "\nHi\n"
    options = ("--max-new-tokens", "4", "--context", "64", "--system", "S")
    assert talk(lines, *pair, *options, monkeypatch=monkeypatch) == 0
    text, said = capfd.readouterr()
    assert "note: not answered: context: room is reckoned for 64 tokens" in said and text.strip()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "chat: expected a tokenizer with a chat template"),
        (["--chat-template-arg", "thinking"], "--chat-template-arg: expected NAME=VALUE, got 'thinking'"),
        (["--chat-template-arg", "a=1", "a=2"], "--chat-template-arg: a is given twice"),
        (["--top-p", "0"], "field top_p: expected a number above 0"),
        (["--greedy", "--temperature", "1"], "field temperature: expected none beside greedy"),
    ],
)
def test_bad_input_gets_one_line(
    options: list[str], complaint: str, capfd: Out, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, _ = write_random_pair(tmp_path)
    assert talk("Hello\n", "--model", str(target), *options, monkeypatch=monkeypatch) == 2
    said = capfd.readouterr().err
    assert complaint in said and said.count("\n") == 1


def test_names_that_are_no_folder_name_the_command_that_fetches_them(
    capfd: Out, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert talk("", "--model", "some/model", monkeypatch=monkeypatch) == 2
    assert "hf download some/model" in capfd.readouterr().err
