"""Weight widths: 64 and 32 (float64, float32), 16 (bfloat16), 8 (one byte per weight) and 4.25 bits.

4.25 is 4 bits per weight and one 8-bit scale for every 32 weights (4 + 8/32): the MXFP4 layout, and what a 4-bit group
quantisation with groups of 32 takes.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Final

from spmoe.errors import InputError

BITS: Final[tuple[float, ...]] = (64, 32, 16, 8, 4.25)


def parse_bits(value: str | float) -> float:
    """The width that `value` ("16", "4.25", or the number) stands for; InputError for any other."""
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        number = Decimal("NaN")
    for bits in BITS:
        if number == Decimal(str(bits)):
            return bits
    raise InputError(f"bits: expected 64, 32, 16, 8 or 4.25, got {str(value)!r}")


def quarter_bits(bits: float) -> int:
    """The width in quarters of a bit: a whole number for every width in `BITS`, so that sizes stay exact."""
    return int((bits if bits in BITS else parse_bits(bits)) * 4)


def weight_bytes(params: int, bits: float) -> int:
    """Bytes of `params` weights of `bits` bits, rounded up; InputError for an unknown width."""
    return -(-params * quarter_bits(bits) // 32)
