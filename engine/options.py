"""What a run is set up with, validated before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import torch

from spmoe.errors import InputError
from spmoe.machine.bits import parse_bits
from spmoe.machine.hardware import Hardware, load_hardware

DTYPES: Final = MappingProxyType(
    {
        "float64": torch.float64,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
)
GAMMA: Final = 4
"""Drafted tokens per round where nothing else is asked for."""
CONTEXT: Final = 4096
"""Tokens of the longest request that room is reckoned for where nothing else is asked for."""
CPU_CACHE: Final = 0.5
"""Share of all experts with slots on a device without memory of its own, where nothing else is asked for."""

Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run a model; see `Engine.from_pretrained`, which says what each option means."""

    policy: str = "spmoe.per-layer"
    vram: str | int | None = None
    cache: float | None = None
    slots: int | None = None
    gamma: int | None = None
    cutoff: int | None = None
    context: int | None = None
    device: str | None = None
    dtype: str | None = None
    hardware: str | Hardware = "rtx-4090"
    link_gbps: float | None = None
    virtual_time: str | Hardware | None = None
    layer_map: Sequence[int] | None = None
    earlier: Path | None = None
    lossy: bool = False
    host_memory: int | None = None

    def resolve_device(self) -> torch.device:
        """The device to compute on; InputError where it is unknown or not there."""
        name = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(name)
        except RuntimeError:
            device = torch.device("meta")
        if device.type not in ("cuda", "cpu"):
            raise InputError(f"device: expected cuda, cuda:N or cpu, got {name!r}")
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise InputError(f"device {name}: torch finds no CUDA device here")
            if (device.index or 0) >= torch.cuda.device_count():
                raise InputError(f"device {name}: there are {torch.cuda.device_count()}, counted from 0")
            if self.link_gbps is not None:
                raise InputError("link_gbps: only the link of a CPU can be slowed down; CUDA has a real one")
        return device

    def resolve_dtype(self, device: torch.device) -> torch.dtype:
        """The type of weights and activations: float32 on the CPU and bfloat16 on a GPU where nothing is asked for."""
        name = self.dtype or ("float32" if device.type == "cpu" else "bfloat16")
        if name not in DTYPES:
            raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, got {name!r}")
        return DTYPES[name]

    def resolve_hardware(self) -> Hardware:
        """The machine whose figures the policy reckons with; in virtual time, the one that is imitated."""
        if self.virtual_time is not None and self.link_gbps is not None:
            raise InputError("link_gbps: in virtual time the profile says how fast the link is")
        chosen = self.hardware if self.virtual_time is None else self.virtual_time
        machine = chosen if isinstance(chosen, Hardware) else load_hardware(chosen)
        if self.link_gbps is None:
            return machine
        if not 0 < self.link_gbps < float("inf"):
            raise InputError(f"link_gbps: expected 10^9 bytes per second, more than 0, got {self.link_gbps}")
        return replace(machine, link=replace(machine.link, bandwidth=max(1, round(self.link_gbps * 1e9))))


def bits_of(dtype: torch.dtype) -> float:
    """Bits per weight."""
    return parse_bits(8 * dtype.itemsize)
