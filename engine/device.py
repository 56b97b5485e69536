"""Where a run computes, and with which numbers."""

from __future__ import annotations

import torch

from engine.options import DTYPES, Options
from spmoe.errors import InputError
from spmoe.machine.bits import parse_bits


def resolve_device(options: Options) -> torch.device:
    """The device to compute on, a GPU where there is one and nothing is asked for.

    Raises InputError where it is unknown or not there, and where its link would have to be slowed down.
    """
    name = options.device
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cuda", "cpu") or (device.type == "cpu" and device.index):
        raise InputError(f"device: expected cuda, cuda:N or cpu, got {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"device {name}: torch finds no CUDA device here")
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"device {name}: there are {torch.cuda.device_count()}, counted from 0")
        if options.link_gbps is not None:
            raise InputError("link_gbps: only the link of a CPU can be slowed down; CUDA has a real one")
    return device


def resolve_dtype(options: Options, device: torch.device) -> torch.dtype:
    """The type of weights and activations: float32 on the CPU and bfloat16 on a GPU where nothing is asked for."""
    name = options.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    if name not in DTYPES:
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, got {name!r}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def bits_of(dtype: torch.dtype) -> float:
    """Bits per weight."""
    return parse_bits(8 * dtype.itemsize)
