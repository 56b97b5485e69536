"""What a command says beside its output: notes on standard error, and failures in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from engine.plan import Plan
from spmoe.cli import printable
from spmoe.errors import InputError
from spmoe.policy.oracle.clairvoyant import Unforeseen
from spmoe.scheduler.loads import TransferFailed


def note(text: str) -> None:
    """Say `text` in one line on standard error."""
    print(f"note: {encodable(printable(text), sys.stderr)}", file=sys.stderr, flush=True)


def encodable(text: str, out: TextIO) -> str:
    """`text` with escapes for what `out` has no characters for."""
    encoding = out.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def telling_failures(plan: Plan) -> Iterator[None]:
    """What a run may die of without a mistake in it, in one line."""
    try:
        yield
    except TransferFailed as error:
        raise InputError(str(error)) from error
    except Unforeseen as error:
        raise InputError(f"{plan.options.earlier}: {error}") from None
