"""The examples of docs/formats.md are what the reader accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path

from spmoe.trace.header import parse_header
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import PrefillLine, TokenLine
from tests.paths import DOCS

PAGE = DOCS / "formats.md"


def test_the_examples_make_a_trace(tmp_path: Path) -> None:
    header, prefill, token = map(json.loads, re.findall(r"```json\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))
    assert parse_header(header).tokens == 2006
    # The lines show two layers of a header that says 32.
    header["model"] |= {"name": "of the page", "layers": 2}
    header |= {"tokens": 1, "forecasts": header["forecasts"] | {"next_gate": {"kind": "recorded"}}}
    path = tmp_path / "page.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, prefill, token)), "utf-8")
    first, second = TraceFile(path)
    assert isinstance(first, PrefillLine) and first.prompt_tokens == 120 and first.counts is not None
    assert (
        isinstance(second, TokenLine) and second.routed == ((3, 5), (1, 0)) and second.forecasts["next_gate"][0] == ()
    )
