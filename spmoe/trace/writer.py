"""Writing traces: the same lines give the same bytes, and a file appears whole or not at all."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import IO, cast

from spmoe.files import atomic_write
from spmoe.trace.compression import zstandard_for
from spmoe.trace.header import header_text
from spmoe.trace.schema import (
    ONE,
    Forecast,
    Forecasts,
    Header,
    PrefillLine,
    RejectedLine,
    TokenLine,
    TraceLine,
)


def write_trace(path: str | os.PathLike[str], header: Header, lines: Iterable[TraceLine]) -> None:
    """Writes header and lines to `path`, compressed by its suffix (.gz, .zst); lines are streamed.

    Raises InputError when `path` cannot be written, and ValueError, leaving no file behind, when the lines do not have
    as many tokens or empty cells as the header says or hold a probability outside 0..65536.
    """
    tokens = empty = 0
    with ExitStack() as stack:
        stream = _open(stack, Path(path))
        stream.write(header_text(header) + "\n")
        for line in lines:
            if isinstance(line, TokenLine):
                tokens += 1
                empty += line.routed.count(())
            stream.write(line_text(line) + "\n")
        if (tokens, empty) != (header.tokens, header.empty_cells):
            raise ValueError(
                f"{path}: the header says {header.tokens} token lines and {header.empty_cells} empty cells; "
                f"the lines have {tokens} and {empty}"
            )


def _open(stack: ExitStack, path: Path) -> IO[str]:
    zstandard = zstandard_for(path) if path.suffix == ".zst" else None  # before any file is made
    raw: IO[bytes] = stack.enter_context(atomic_write(path, binary=True))
    if path.suffix == ".gz":
        # No name and no time in the gzip header: they would make the bytes differ from run to run.
        zipped = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0)
        raw = cast(IO[bytes], stack.enter_context(zipped))
    elif zstandard is not None:
        raw = stack.enter_context(zstandard.ZstdCompressor(level=10).stream_writer(raw, closefd=False))
    return stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8", newline="\n"))


def line_text(line: TraceLine) -> str:
    """One trace line as compact JSON, without line end; optional fields that are None or empty are left out."""
    if isinstance(line, PrefillLine):
        counts = "" if line.counts is None else f',"counts":{_integers(line.counts)}'
        prompt = f'{{"tokens":{line.prompt_tokens},"touched":{_integers(line.touched)}{counts}}}'
        return f'{{"request":{line.request},"prefill":{prompt}}}'
    agree = "true" if line.agree else "false"
    text = (
        f'{{"request":{line.request},"position":{line.position},"routed":{_integers(line.routed)},"agree":{agree}'
        f"{_draft_prob(line.draft_prob)}"
    )
    if line.weights is not None:
        text += f',"weights":{_shares(line.weights)}'
    text += _forecasts(line.forecasts)
    if line.rejected:
        text += f',"rejected":[{",".join(map(_rejected, line.rejected))}]'
    if line.gate_probs is not None:
        text += f',"gate_probs":{_shares(line.gate_probs)}'
    return text + "}"


def _rejected(line: RejectedLine) -> str:
    weights = "" if line.weights is None else f',"weights":{_shares(line.weights)}'
    return f'{{"routed":{_integers(line.routed)}{_forecasts(line.forecasts)}{_draft_prob(line.draft_prob)}{weights}}}'


def _draft_prob(value: int | None) -> str:
    return "" if value is None else f',"draft_prob":{_share(value)}'


def _forecasts(forecasts: Forecasts) -> str:
    if not forecasts:
        return ""
    named = (f'"{name}":[{",".join(map(_forecast, layers))}]' for name, layers in forecasts.items())
    return f',"forecasts":{{{",".join(named)}}}'


def _forecast(forecast: Forecast) -> str:
    return "[" + ",".join([f"[{expert},{_share(share)}]" for expert, share in forecast]) + "]"


def _integers(cells: Iterable[Iterable[int]]) -> str:
    return "[" + ",".join([f"[{','.join(map(str, cell))}]" for cell in cells]) + "]"


def _shares(cells: Iterable[Iterable[int]]) -> str:
    return "[" + ",".join([f"[{','.join(map(_share, cell))}]" for cell in cells]) + "]"


@cache
def _share(value: int) -> str:
    """A probability as a decimal.  Five digits are the fewest from which every integer / 65536 can be read back."""
    if not 0 <= value <= ONE:
        raise ValueError(f"expected a probability of 0..{ONE} / {ONE}, got {value}")
    return f"{value / ONE:.5f}".rstrip("0").rstrip(".")
