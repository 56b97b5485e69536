"""Lines that wait on disk: they come back as they were, and a full disk is one line."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the engine needs torch")

from engine.cli.spool import Spool
from spmoe.errors import InputError
from spmoe.trace.schema import ModelShape, PrefillLine, RejectedLine, TokenLine

MODEL = ModelShape("tiny", 2, 4, 1, 100, 100, 0)
FORECASTS = {"draft": (((0, 65536),), ((1, 1),)), "next_gate": ((), ((2, 40000),))}
LINES = [
    PrefillLine(0, 5, ((0, 1), (2,)), counts=((2, 3), (5,))),
    TokenLine(0, 5, ((1,), (2,)), True, 30000, ((65536,), (1,)), FORECASTS),
    TokenLine(
        0, 6, ((3,), (0,)), False, None, ((7,), (9,)), {}, (RejectedLine(((0,), (1,)), FORECASTS, 3, ((8,), (8,))),)
    ),
]


def test_lines_come_back_as_they_were_any_number_of_times() -> None:
    with Spool(MODEL) as spool:
        assert list(spool) == []
        for line in LINES:
            spool.append(line)
        assert list(spool) == list(spool) == LINES


def test_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt), Spool(MODEL) as spool:
        spool.append(LINES[0])
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_no_place_and_a_full_disk_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with Spool(MODEL) as spool:

        def full(_text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(spool._file, "write", full)
        with pytest.raises(InputError, match=r"^temporary file for the trace: .* No space left on device$"):
            spool.append(LINES[0])
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        Spool(MODEL)
