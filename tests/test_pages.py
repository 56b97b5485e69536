"""README and docs point at what is there: files, sections, commands and their options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import engine.cli.parser
import sim.cli.parser
from tests.paths import DOCS, ROOT

PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
        *DOCS.glob("*.md"),
        ROOT / "traces" / "README.md",
        *(ROOT / "models").rglob("*.md"),
    ]
)
PARSERS = {"sim": sim.cli.parser.parser, "engine": engine.cli.parser.parser}
IN_THE_REPOSITORY = (
    "spmoe",
    "sim",
    "engine",
    "tests",
    "benchmarks",
    "docs",
    "examples",
    "training",
    "models",
    "profiles",
)

named = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """Of the headings, as Markdown viewers make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@named
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if link.startswith(("http:", "https:")):
            continue
        path, _, section = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not section or section in anchors(target), link


@named
def test_files_in_backticks_are_there(page: Path) -> None:
    for name in re.findall(r"`([\w.-]+/[\w./-]+\.(?:py|md|jsonl?|svg))`", page.read_text("utf-8")):
        if name.startswith(tuple(f"{top}/" for top in IN_THE_REPOSITORY)):
            assert (ROOT / name).exists() or name == "profiles/mine.json", name


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each shell command that the page shows, without comments."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?:    |\$ )(python -m .*)$", text, re.M):
        yield shlex.split(line, comments=True)[2:]


@named
def test_commands_are_understood(page: Path) -> None:
    for module, *words in commands(page):
        if module in PARSERS:
            PARSERS[module]().parse_args(words)


@named
def test_modules_that_are_run_are_there(page: Path) -> None:
    for module in re.findall(r"python -m ([a-z_]+(?:\.[a-z_]+)*)", page.read_text("utf-8")):
        assert find_spec(module) is not None, module


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


def test_the_index_has_every_page() -> None:
    index = (DOCS / "README.md").read_text("utf-8")
    assert {path.name for path in DOCS.glob("*.md")} - {"README.md"} <= set(re.findall(r"\]\(([\w-]+\.md)\)", index))


def test_the_architecture_has_every_room() -> None:
    text = (DOCS / "architecture.md").read_text("utf-8")
    table = text[text.index("## Where things are") : text.index("## Journey 1")]
    rooms = {
        path.parent.relative_to(ROOT).as_posix()
        for package in ("spmoe", "sim", "engine")
        for path in (ROOT / package).glob("*/__init__.py")
    }
    assert rooms <= set(re.findall(r"`([\w/]+)`", table))
