"""Puts what a benchmark has found where a page quotes it, between two marks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from spmoe.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]


def embedded(text: str, name: str, lines: Iterable[str], by: str) -> str:
    """`text` with the lines in place of what stands between the marks of the benchmark `by`."""
    begin, end = f"<!-- {name}: made by benchmarks/{by}.py -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    assert found and closed, f"the page has no place for {name!r}"
    return "\n".join([before + begin, "", *lines, "", end]) + after


def embed(page: Path, name: str, lines: Iterable[str], by: str) -> None:
    """The same in the page itself."""
    text = embedded(page.read_text("utf-8"), name, lines, by)
    with atomic_write(page) as stream:
        stream.write(text)
