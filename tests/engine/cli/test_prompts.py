"""Files of prompts: what a line may be, and how messages call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the engine needs torch")

from engine.cli.prompts import number_prompts, read_prompts
from spmoe.errors import InputError


def test_a_line_of_text_is_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes('\ufeffone\r\n\n  two \n \t\nthr\u00e9e \u2028 line\x0b\n"four"'.encode())
    found = read_prompts(path)
    assert [each.text for each in found] == ["one", "  two ", "thr\u00e9e \u2028 line\x0b", '"four"']
    assert [each.name for each in found] == [f"{path}:{line}" for line in (1, 3, 5, 6)]


def test_a_line_of_json_is_a_string_or_holds_one(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    values = ["def f(x):\n    ", {"prompt": "a\u2028b", "id": 7}, {"prompt": "  "}]
    path.write_text("\n\n".join(json.dumps(value, ensure_ascii=False) for value in values) + "\n", "utf-8")
    assert [(each.name, each.text) for each in read_prompts(path)] == [
        (f"{path}:1", "def f(x):\n    "),
        (f"{path}:3", "a\u2028b"),
        (f"{path}:5", "  "),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", b"a", [": expected a .txt or .jsonl file"]),
        ("p", b"a", [": expected a .txt or .jsonl file"]),
        ("p.txt", b"", [": expected at least one prompt, found none"]),
        ("p.jsonl", b"\n \n", [": expected at least one prompt, found none"]),
        ("p.txt", b"fine\n\xff\n", [":2: expected text in UTF-8"]),
        ("p.jsonl", b'"fine"\n\n{"prompt": 3}', [":3: expected a JSON string, or an object"]),
        ("p.jsonl", b'{"text": "a"}', [":1: expected a JSON string", '"prompt"']),
        ("p.jsonl", b'["a"]', [":1: expected a JSON string"]),
        ("p.jsonl", b'"fine"\nfoo', [":2: expected JSON"]),
        ("p.jsonl", b"[" * 10**5, [":1: expected JSON"]),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.txt: cannot be read: No such file"):
        read_prompts(tmp_path / "missing.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputError, match=r"folder\.txt: cannot be read: Is a directory"):
        read_prompts(tmp_path / "folder.txt")


def test_prompts_of_the_command_line_have_numbers() -> None:
    assert [tuple(each) for each in number_prompts(["a", "b"])] == [("prompt 1", "a"), ("prompt 2", "b")]
