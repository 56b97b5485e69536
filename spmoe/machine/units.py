"""Sizes and durations as people write and read them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from spmoe.errors import InputError

GIB: Final = 1024**3

_SIZE: Final = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?:(?P<unit>[kmgt])(?P<suffix>ib|b)?|b)?", re.IGNORECASE
)
_POWER: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def ceil_ns(amount: int, per_second: int) -> int:
    """Nanoseconds for `amount` (bytes, FLOP) at a rate per second, rounded up: the only place that rounds a time."""
    return -(-amount * 1_000_000_000 // per_second)


def parse_size(text: str) -> int:
    """Bytes in `text`: "18GiB", "1.5 GiB", "24GB", "24g", "512 MiB", or a plain number of bytes.

    KiB, MiB, GiB, TiB are powers of 1024; KB, MB, GB, TB powers of 1000.  A bare letter (24g) means the power of 1024,
    because that is how the memory of a GPU is counted.  Case does not matter; a fraction of a byte is dropped.
    Raises InputError on anything else, and on less than one byte.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"size: expected a number and a unit such as 18GiB or 24GB, got {text!r}")
    base = 1000 if (match["suffix"] or "").lower() == "b" else 1024
    size = int(Decimal(match["number"]) * base ** _POWER[(match["unit"] or "").lower()])
    if size < 1:
        raise InputError(f"size: expected at least one byte, got {text!r}")
    return size


def format_size(size: int) -> str:
    """`size` bytes in the largest binary unit that leaves at least 1, with one decimal: "22.5 GiB"."""
    for unit, name in ((1024**4, "TiB"), (GIB, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if abs(size) >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"


def format_ms(ns: int) -> str:
    """`ns` nanoseconds in milliseconds, with about three significant digits: "29.4 ms", "0.0123 ms", "1,250 ms"."""
    ms = ns / 1e6
    decimals = 0 if ms >= 100 else 1 if ms >= 10 else 2 if ms >= 1 or ns == 0 else 3 if ms >= 0.1 else 4
    return f"{ms:,.{decimals}f} ms"
