"""Generated parts of pages are what committed results and the registry give, and are found by their markers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pages.__main__ import MEASURED, main
from benchmarks.pages.markers import Block, embedded, updated


@pytest.mark.parametrize("name", MEASURED)
def test_pages_are_up_to_date(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--check"]) == 0, capsys.readouterr().out


def test_what_stands_beside_the_markers_stays() -> None:
    text = "before\n<!-- one: made by x -->\n\nold\nlines\n\n<!-- end of one -->\n"
    text += "after <!-- two -->\nold\n<!-- end of two -->"
    assert embedded(text, "one", ["new", ""]) == text.replace("old\nlines", "new")
    assert embedded(text, "two", [r"a\1"]) == text.replace("old\n<!-- end of two", "a\\1\n<!-- end of two")


@pytest.mark.parametrize("text", ["", "<!-- one -->\nno end", 2 * "<!-- one -->\n\n<!-- end of one -->\n"])
def test_markers_that_are_missing_or_double_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="places for 'one', not one"):
        embedded(text, "one", [])


def test_blocks_of_one_page_are_put_into_the_same_text(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- a -->\n1\n<!-- end of a -->\n<!-- b -->\n2\n<!-- end of b -->\n")
    assert updated([Block(page, "a", ["3"]), Block(page, "b", ["4"])]) == {
        page: "<!-- a -->\n3\n<!-- end of a -->\n<!-- b -->\n4\n<!-- end of b -->\n"
    }


def test_an_unknown_page_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["nothing"])
    assert "no page writer 'nothing': there are demo" in capsys.readouterr().err
