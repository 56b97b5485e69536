"""What the cost model is made of, item by item."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from spmoe.machine.bits import quarter_bits
from spmoe.machine.geometry import DraftModel
from spmoe.machine.hardware import Hardware
from spmoe.machine.units import ceil_ns, format_ms


class CostItem(NamedTuple):
    """One duration and the arithmetic behind it, in words and numbers."""

    name: str
    ns: int
    formula: str


def draft_item(draft: DraftModel, hardware: Hardware, bits: float) -> CostItem:
    """The profile's draft time, carried over to `draft`.

    The part that reading the stated draft's weights takes grows with the bytes this draft reads per token, the
    rest (launches, small kernels) with its layers.
    """
    stated = hardware.draft
    stated_bytes = Fraction(stated.params * quarter_bits(stated.bits), 32)
    own_bytes = Fraction(draft.active_params * quarter_bits(draft.width(bits)), 32)
    token = Fraction(stated.token_ns, 10**9)
    reading = min(token, stated_bytes / hardware.gpu.bandwidth)
    seconds = reading * own_bytes / stated_bytes + (token - reading) * Fraction(draft.layers, stated.layers)
    formula = (
        f"{draft.name}: {float(own_bytes) / 1e6:,.0f} MB in {draft.layers} layers, where "
        f"{float(stated_bytes) / 1e6:,.0f} MB in {stated.layers} layers take {format_ms(stated.token_ns)}, "
        f"{format_ms(int(reading * 10**9))} of it reading"
    )
    return CostItem("draft token", ceil_ns(seconds.numerator, seconds.denominator), formula)
