"""The progress bar on standard error."""

from __future__ import annotations

import io
import sys

import pytest

from spmoe.progress import no_progress, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_line_that_is_erased_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    with progress_bar(4, "tokens") as progress:
        progress("spmoe.paper", 2)
    drawn = terminal.getvalue()
    assert f"{'#' * 20}{'.' * 20} 2/4 tokens  spmoe.paper" in drawn
    assert drawn.endswith("\r\x1b[K") and "\n" not in drawn


def test_a_file_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    with progress_bar(4, "tokens") as progress:
        assert progress is no_progress
        progress("spmoe.paper", 2)
    assert file.getvalue() == ""
