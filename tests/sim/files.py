"""Trace files for tests of the command line and of what runs leave behind."""

from __future__ import annotations

from pathlib import Path

from spmoe.trace.schema import TraceInMemory
from spmoe.trace.writer import write_trace
from tests.conformance.cases import make_trace


def write(trace: TraceInMemory, path: Path) -> Path:
    write_trace(path, trace.header, trace.lines)
    return path


def small_trace(folder: Path, lengths: tuple[int, ...] = (12, 7, 9)) -> Path:
    """A trace of 3 layers with 6 experts, top-2, and requests of these lengths."""
    return write(make_trace(3, 3, 6, 2, list(lengths), agreement=0.8, empty=0), folder / "small.jsonl")
