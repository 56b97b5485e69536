"""How a system's own runtime uses the machine, apart from what it decides.

Only the simulator reads it.  In the engine every recipe runs on the engine's own runtime, which is `NATIVE`, and the
summary of a run says where the original differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What overlaps, and what costs extra time.

    `overlap`: copies run beside compute; without it both take turns on one stream, in order of issue.  `host_overlap`:
    the CPU computes beside the GPU; without it the CPU begins when the GPU is through with the layer's experts.
    `write_back`: an evicted expert is first copied back to host memory, at the speed of a load.  `prefetch_blocks`: the
    experts of a layer compute only when all prefetches submitted before it was reached have arrived, needed or not.
    `copies_per_load`: pieces that an expert is copied in.  `submission_ns`: what a submission costs besides, on the
    link.
    """

    overlap: bool = True
    host_overlap: bool = True
    write_back: bool = False
    prefetch_blocks: bool = False
    copies_per_load: int = 1
    submission_ns: int = 0

    def __post_init__(self) -> None:
        if self.copies_per_load < 1 or self.submission_ns < 0:
            raise ValueError(f"a load takes at least one copy and no negative time: {self}")

    def explain(self) -> tuple[str, ...]:
        """Where it differs from the native runtime, in words."""
        differences = []
        if not self.overlap:
            differences.append("copies and compute take turns")
        if not self.host_overlap:
            differences.append("the CPU computes after the GPU")
        if self.write_back:
            differences.append("evicted experts are copied back")
        if self.prefetch_blocks:
            differences.append("a layer waits for prefetches under way, needed or not")
        if self.copies_per_load > 1:
            differences.append(f"{self.copies_per_load} copies per expert")
        if self.submission_ns:
            differences.append(f"{self.submission_ns / 1e6:g} ms more per submission")
        return tuple(differences)


NATIVE: Final = Runtime()
