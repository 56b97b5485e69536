"""The host store: the weights of all experts in host memory, one blob per expert."""

from __future__ import annotations

import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from engine.memory.layout import Layout
from spmoe.errors import InputError
from spmoe.machine.units import format_size

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


class HostStore:
    """One contiguous blob per expert key, in the order of keys, so that neighbours can be copied as one.

    Whoever loads the model fills the blobs and then calls `seal`.
    """

    def __init__(self, layout: Layout, keys: int, pin: bool = False, available: int | None = None) -> None:
        """Room for the experts 0 .. keys - 1; `pin` locks it in memory so that a GPU copies from it by itself.

        `available` is how many bytes of host memory may be taken; None asks the system.  Raises InputError before
        anything is allocated when that is too little, and when the memory cannot be pinned.
        """
        self.layout = layout
        self.keys = keys
        require_memory(keys * layout.size, available, f"the {keys} experts")
        self._blobs = torch.empty((keys, layout.size), dtype=torch.uint8)
        self._checksums: tuple[int, ...] | None = None
        if pin:
            _pin(self._blobs)
            # Holds the memory, too: it may not be given back while it is pinned.
            weakref.finalize(self, _unpin, self._blobs)

    def blob(self, key: int) -> torch.Tensor:
        """The bytes of one expert, uint8 [layout.size]: a view to read from and, while loading, to write to."""
        return self.rows(key, 1)[0]

    def rows(self, key: int, count: int) -> torch.Tensor:
        """The bytes of `count` experts from `key` on, uint8 [count, layout.size]: a contiguous view."""
        if not 0 <= key <= self.keys - count:
            raise IndexError(f"experts {key} to {key + count - 1} of a store of {self.keys}")
        return self._blobs[key : key + count]

    def seal(self) -> None:
        """Note a checksum of every blob as it is now."""
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # crc32 runs outside the interpreter's lock.
            self._checksums = tuple(pool.map(self._checksum, range(self.keys)))

    def check(self, key: int) -> None:
        """Raises RuntimeError when the blob of `key` is not what it was when the store was sealed."""
        if self._checksums is None:
            raise RuntimeError("the host store is not sealed yet: there is nothing to check against")
        found, expected = self._checksum(key), self._checksums[key]
        if found != expected:
            raise RuntimeError(
                f"expert {key} has changed in host memory since it was loaded: "
                f"checksum {found:08x}, expected {expected:08x}"
            )

    def _checksum(self, key: int) -> int:
        return zlib.crc32(self.blob(key).numpy().data)


class SharedStore(HostStore):
    """Experts that share the memory of `distinct` ones, for timing alone: what they hold is the same."""

    def __init__(
        self, layout: Layout, keys: int, distinct: int, pin: bool = False, available: int | None = None
    ) -> None:
        """The rest as in `HostStore`, and so are errors."""
        super().__init__(layout, min(keys, distinct), pin, available)
        self._distinct = self.keys
        self.keys = keys

    def rows(self, key: int, count: int) -> torch.Tensor:
        """Contiguous whatever the key; IndexError for more rows than there are distinct ones."""
        if not 0 <= key <= self.keys - count or count > self._distinct:
            raise IndexError(f"experts {key} to {key + count - 1} of {self.keys}, {self._distinct} of them distinct")
        first = min(key % self._distinct, self._distinct - count)
        return self._blobs[first : first + count]


def require_memory(needed: int, available: int | None, what: str) -> None:
    """Raises InputError when `what` takes more than `available` bytes; None asks the system."""
    if available is None:
        available = available_memory()
    if available is not None and needed > available:
        raise InputError(
            f"{what} take {format_size(needed)} of host memory, but only {format_size(available)} are available"
        )


def available_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Bytes of host memory that can be taken without swapping, within the limit of the container (cgroup version 2).

    None where the system does not tell (no Linux).
    """
    limits = []
    try:
        lines = meminfo.read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            used = int((cgroup / "memory.current").read_text())
            stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
            # Pages of files count as used, but make room when it is needed.
            used -= int(stat["active_file"]) + int(stat["inactive_file"])
            limits.append(max(0, int(limit) - used))
    except OSError:
        pass  # Without the one or the other.
    return min(limits, default=None)


def _pin(memory: torch.Tensor) -> None:
    # Not torch's own pinned memory: that rounds up to a power of two, which would nearly double a large store.
    error = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
    if error:
        raise InputError(f"{format_size(memory.nbytes)} of host memory cannot be pinned: CUDA error {error}")


def _unpin(memory: torch.Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
