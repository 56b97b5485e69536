"""Rewrites `counts.json`: `python -m tests.golden.rewrite`."""

from __future__ import annotations

from spmoe.files import atomic_write
from tests.golden.runs import COUNTS, counts, text

if __name__ == "__main__":
    with atomic_write(COUNTS) as stream:
        stream.write(text(counts()))
