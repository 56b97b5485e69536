"""The pages name what the code has: policies, events, commands, effects, and fields of results."""

from __future__ import annotations

import re

import pytest

from benchmarks.pages.policies import PAGE
from spmoe.drive import step
from spmoe.policy.registry import recipe
from spmoe.results.metrics_fold import MetricsFold
from spmoe.results.result import Result
from spmoe.results.timeline import ROWS
from spmoe.state import commands, events

DOCS = PAGE.parent


def first_column(page: str, heading: str) -> list[str]:
    """The names in the first column of the table with that heading."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (table,) = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    return [row.split("`")[1] for row in table.splitlines()]


def test_links_between_sections_of_the_page_of_policies_lead_somewhere() -> None:
    page = PAGE.read_text(encoding="utf-8")
    anchors = {re.sub(r"[^a-z0-9 -]", "", line[4:].lower()) for line in page.splitlines() if line.startswith("### ")}
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) == anchors


@pytest.mark.parametrize(
    ("heading", "kinds"),
    [
        ("event", events.Event.__args__),
        ("command", (commands.Submit, *commands.Reply.__args__)),
        ("effect", step.Effect.__args__),
    ],
)
def test_the_contract_tables_every(heading: str, kinds: tuple[type, ...]) -> None:
    assert sorted(first_column("contract.md", heading)) == sorted(kind.__name__ for kind in kinds)


def test_the_page_of_formats_names_every_field_of_a_result() -> None:
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    said = text[text.index("\nOf each policy:") : text.index("`spmoe-cutoff/1`")]
    fields = Result(recipe("on-demand.lru"), MetricsFold(1).result(), 1, True).to_json()
    assert fields.keys() <= set(re.findall(r"`(\w+)`", said))


def test_the_page_of_formats_tables_the_rows_of_a_timeline() -> None:
    assert first_column("formats.md", "row") == list(ROWS)
