"""The engine's times in docs/foresight.md, from what `benchmarks.engine.order` measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.engine.order import PROMPT_COUNT, RESULT
from benchmarks.files import ROOT, read_json
from benchmarks.pages.markers import Block


def blocks() -> Iterator[Block]:
    """The one table, and what follows from it."""
    yield Block(ROOT / "docs" / "foresight.md", "order", page(read_json(RESULT)))


def page(known: Mapping[str, Any]) -> Iterator[str]:
    """What stands in the docs."""
    yield "| row | misses | loads | simulated ms | measured ms | spread | simulated / measured |"
    yield "|---|---|---|---|---|---|---|"
    for misses, one in known["sets"].items():
        for row in sorted(one["rows"], key=lambda row: row["measured_tpot_ms"], reverse=True):
            predicted, measured = row["predicted_tpot_ms"], row["measured_tpot_ms"]
            yield (
                f"| `{row['policy']}` | {misses} | {row['loads']:,} | {predicted:.1f} | {measured:.1f} | "
                f"{row['spread']:.1%} | {predicted / measured:.2f} |"
            )
    yield ""
    fetching = known["sets"]["misses fetched"]
    turned = [f"`{faster}` before `{slower}`" for faster, slower in fetching["other way round"]]
    yield (
        f"Of the {fetching['pairs']} pairs of rows that fetch their misses {fetching['apart']} are further apart than "
        f"their runs spread, and {fetching['apart'] - len(turned)} of"
    )
    yield f"those are simulated in the same order (tau {fetching['kendall_tau']:.2f})."
    if turned:
        yield f"Measured the other way round: {', '.join(turned)}."
    yield ""
    tokens, different = (sum(one[name] for one in known["texts"]) for name in ("tokens", "different"))
    wrong = f", but for {different} that rounding decided" if different else ""
    yield (
        f"Text: {tokens:,} tokens in {len(known['texts'])} runs of {PROMPT_COUNT} prompts, all of them those of plain "
        f"transformers{wrong}."
    )
