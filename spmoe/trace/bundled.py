"""The trace that is installed with the package, so that there is something to replay after `pip install`.

    python -m spmoe.trace.bundled traces/mixtral.jsonl

writes it again: the first two requests of that trace, synthetic as all of it (`traces/README.md`).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from spmoe.trace.excerpt import excerpt
from spmoe.trace.reader import TraceFile
from spmoe.trace.writer import write_trace

TOKENS: Final = 342
"""Of the first two requests: policies that learn from other requests need more than one."""


def bundled_trace() -> Path:
    """The file of the bundled trace: 342 tokens of Mixtral-8x7B, synthetic."""
    return Path(__file__).with_name("mixtral-excerpt.jsonl.gz")


def write_excerpt(source: Path, out: Path) -> None:
    """The first `TOKENS` tokens of `source` as a trace whose header says so; InputError as in `excerpt`."""
    trace = TraceFile(source)
    model, draft = trace.header.model, trace.header.draft
    short = excerpt(trace, TOKENS, model, draft)
    how = f"the first {TOKENS} of {trace.header.tokens} tokens of {source.name}; {trace.header.source.how}"
    header = replace(short.header, source=replace(trace.header.source, how=how))
    write_trace(out, header, short.lines)


if __name__ == "__main__":
    write_excerpt(Path(sys.argv[1]), bundled_trace())
