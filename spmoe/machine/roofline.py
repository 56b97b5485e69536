"""The time of weights that are read once and multiplied with every token."""

from __future__ import annotations

from dataclasses import dataclass

from spmoe.machine.bits import quarter_bits
from spmoe.machine.units import ceil_ns


@dataclass(frozen=True, slots=True)
class Roofline:
    """One of `parts` equal parts of `params` weights, each `bits` wide, with `kv_bytes` per position beside them.

    The part takes as long as the slower of reading everything once (bandwidth, bytes/s) and 2 FLOP per weight and
    token (flops, FLOP/s).  Whole numbers throughout, so that the only rounding is the last one.
    """

    params: int
    bits: float
    bandwidth: int
    flops: int
    parts: int = 1
    kv_bytes: int = 0

    def ns(self, tokens: int, context: int = 0) -> int:
        """Nanoseconds for `tokens` computed together, reading the keys and values of `context` positions."""
        # In 32nds of a byte, because a weight may take 4.25 bits.
        read = self.params * quarter_bits(self.bits) + 32 * self.kv_bytes * context
        return max(
            ceil_ns(read, 32 * self.parts * self.bandwidth), ceil_ns(2 * tokens * self.params, self.parts * self.flops)
        )

    def formula(self, tokens: int, context: int = 0) -> str:
        """The same in words and numbers."""
        weights = self.params * quarter_bits(self.bits) / 32 / self.parts
        kv = f" + {self.kv_bytes * context / self.parts / 1e6:,.3f} MB of keys and values" if self.kv_bytes else ""
        return (
            f"the larger of reading {weights / 1e6:,.3f} MB of weights{kv} at {self.bandwidth / 1e9:,.1f} GB/s "
            f"and {2 * tokens * self.params / self.parts / 1e9:,.3f} GFLOP at {self.flops / 1e12:,.1f} TFLOP/s"
        )
