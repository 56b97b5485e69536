"""Machines and pieces of the trace of this repository for tests that compare runs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import groupby, islice, takewhile

from spmoe.machine.hardware import Hardware, load_hardware
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import TokenLine, TraceInMemory
from tests.paths import TRACES

MIXTRAL = TRACES / "mixtral.jsonl"


def rtx_4090(bandwidth: int) -> Hardware:
    """An RTX 4090 with a link of `bandwidth` bytes/s."""
    machine = load_hardware("rtx-4090")
    return replace(machine, link=replace(machine.link, bandwidth=bandwidth))


@cache
def mixtral_requests(count: int, longest: int | None = None) -> TraceInMemory:
    """The first `count` requests of the Mixtral trace, of each at most the first `longest` tokens (None: all)."""
    whole = TraceFile(MIXTRAL)
    begun = takewhile(lambda line: line.request < count, whole)
    room = None if longest is None else 1 + longest  # The prompt's line comes first.
    lines = tuple(line for _, request in groupby(begun, lambda line: line.request) for line in islice(request, room))
    tokens = sum(isinstance(line, TokenLine) for line in lines)
    return TraceInMemory(replace(whole.header, tokens=tokens), lines)
