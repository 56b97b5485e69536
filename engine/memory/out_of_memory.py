"""Where memory runs out, a message in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spmoe.errors import InputError


@contextmanager
def oom_as_input_error(device: torch.device, advice: str) -> Iterator[None]:
    """Where host or device memory runs out in the block, an InputError that names `device` and gives `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"out of memory on {device}: {advice}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` says that there is no more memory, of the host or a device."""
    # What torch raises on the CPU has no type of its own.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
