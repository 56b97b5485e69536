"""Generated parts of pages: what stands between `<!-- NAME: made by ... -->` and `<!-- end of NAME -->`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Block(NamedTuple):
    """Lines of Markdown that belong between the markers of that name on a page."""

    page: Path
    name: str
    lines: Iterable[str]


def embedded(text: str, name: str, lines: Iterable[str]) -> str:
    """`text` with the lines between the markers of that name; blank lines beside the markers stay as they are.

    Raises `ValueError` unless the text has both markers exactly once.
    """
    mark = re.escape(name)
    inside = rf"(?:(?!<!-- end of {mark} -->).)*?"
    marked = rf"(<!-- {mark}(?:: [^>]*)? -->\n+){inside}(\n+<!-- end of {mark} -->)"
    content = "\n".join(lines).rstrip("\n")
    found, count = re.subn(marked, lambda match: f"{match[1]}{content}{match[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the page has {count} places for {name!r}, not one")
    return found


def updated(blocks: Iterable[Block]) -> dict[Path, str]:
    """The text of every page that the blocks name, with the blocks in their places."""
    texts: dict[Path, str] = {}
    for page, name, lines in blocks:
        texts[page] = embedded(texts.get(page) or page.read_text(encoding="utf-8"), name, lines)
    return texts
