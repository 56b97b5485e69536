"""The table of docs/models.md: every family with routed experts of the installed transformers, tried."""

from __future__ import annotations

from collections.abc import Iterator

import transformers

from benchmarks.engine.equality import ALONE, EQUAL, verdict
from benchmarks.engine.families import model_types
from benchmarks.files import ROOT
from benchmarks.pages.markers import Block

PAGE = ROOT / "docs" / "models.md"


def blocks() -> Iterator[Block]:
    """One, of all families; takes some minutes."""
    verdicts = [verdict(name) for name in model_types()]
    runs = [each for each in verdicts if each.result in (EQUAL, ALONE)]
    rows = [f"| `{each.model_type}` | {each.model_class} | {each.result.replace('|', '/')} |" for each in verdicts]
    summary = (
        f"transformers {transformers.__version__}: {len(verdicts)} model types that can have routed experts, of which "
        f"{len(runs)} put out what plain transformers does."
    )
    yield Block(PAGE, "models", [summary, "\n".join(("| model type | class | result |", "|---|---|---|", *rows))])
