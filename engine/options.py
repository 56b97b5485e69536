"""What a run is set up with.  Knows nothing of PyTorch, so that a command line can be read without it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from spmoe.errors import InputError
from spmoe.machine.hardware import Hardware, load_hardware
from spmoe.machine.units import parse_size
from spmoe.run.options import DEFAULT_HARDWARE

DTYPES: Final = ("float64", "float32", "bfloat16", "float16")
KERNELS: Final = ("plain", "triton")
"""Who computes experts in slots: torch, operation by operation, or kernels of our own."""
DEFAULT_POLICY: Final = "spmoe.foresight"
"""What decides where nothing else is asked for."""
NGRAM: Final = "ngram"
"""In place of a draft model: what followed before in the same text is drafted."""
NO_DRAFT: Final = "none"
CONTEXT: Final = 4096
"""Tokens of the longest request that room is reckoned for where nothing else is asked for."""
CPU_CACHE: Final = 0.5
"""Share of all experts with slots on a device without memory of its own, where nothing else is asked for."""
FASTEST: Final = 1e6
"""The most GB/s that a link may be slowed down to."""

PathName = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run a model; see `Engine.from_pretrained`, which says what each option means."""

    policy: str = DEFAULT_POLICY
    vram: str | int | None = None
    cache: float | None = None
    slots: int | None = None
    gamma: int | None = None
    gamma_max: int | None = None
    cutoff: int | None = None
    context: int | None = None
    device: str | None = None
    dtype: str | None = None
    kernel: str = "plain"
    hardware: str | Hardware = DEFAULT_HARDWARE
    link_gbps: float | None = None
    virtual_time: str | Hardware | None = None
    layer_map: Sequence[int] | None = None
    earlier: PathName | None = None
    cpu_experts: bool = True
    lossy: bool = False
    host_memory: str | int | None = None
    ngram: bool = False

    def resolve_hardware(self) -> Hardware:
        """The machine whose figures the policy reckons with; in virtual time, the one that is imitated."""
        if self.virtual_time is not None and self.link_gbps is not None:
            raise InputError("link_gbps: in virtual time the profile says how fast the link is")
        chosen = self.hardware if self.virtual_time is None else self.virtual_time
        machine = chosen if isinstance(chosen, Hardware) else load_hardware(chosen)
        if self.link_gbps is None:
            return machine
        if not 0 < self.link_gbps <= FASTEST:  # NaN fails too
            raise InputError(
                f"link_gbps: expected 10^9 bytes per second, above 0 and up to {FASTEST:.0f}, got {self.link_gbps}"
            )
        return replace(machine, link=replace(machine.link, bandwidth=max(1, round(self.link_gbps * 1e9))))

    def resolve_host_memory(self) -> int | None:
        """Bytes of host memory that may be taken; None: what the system has available."""
        given = self.host_memory
        if given is None:
            return None
        if isinstance(given, str):
            try:
                return parse_size(given)
            except InputError as error:
                raise InputError(f"host_memory: {error}") from None
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise InputError(f"host_memory: expected at least one byte, got {given!r}")
        return given
