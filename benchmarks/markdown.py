"""Tables and words of generated pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

OUTSIDE = "**outside**"


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; the first column is text, the others numbers."""
    lines = [f"| {' | '.join(headings)} |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def verdict(inside: bool) -> str:
    """In a word."""
    return "inside" if inside else OUTSIDE
