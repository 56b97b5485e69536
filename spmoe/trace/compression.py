"""Zstandard, if its library is there; everything else about compression is in Python itself."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, Any

from spmoe.errors import InputError


def zstandard_for(path: str | os.PathLike[str]) -> Any:
    """The zstandard module; InputError naming `path` and the command that installs it where it is missing."""
    try:
        import zstandard
    except ImportError:
        raise InputError(f"{path}: .zst files need the zstandard library: pip install zstandard") from None
    return zstandard


class _ZstReader(io.RawIOBase):
    """A zstandard file as raw bytes that fails like a gzip file does: on garbage, and on a file that is cut short.

    The library's own stream reader takes a cut frame for the end of the file.
    """

    def __init__(self, path: Path, zstandard: Any) -> None:
        self._zstandard = zstandard
        self._file = open(path, "rb")  # noqa: SIM115 (closed in close)
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._fresh = True  # no byte of the current frame was read
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            chunk = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._fresh = self._zstandard.ZstdDecompressor().decompressobj(), True
            chunk = chunk or self._file.read(1 << 17)
            if not chunk:
                if self._fresh:
                    return 0
                raise EOFError("the zstandard frame has no end")
            self._fresh = False
            try:
                self._pending = memoryview(self._frame.decompress(chunk))
            except self._zstandard.ZstdError as error:
                raise EOFError(str(error)) from None
        size = min(len(buffer), len(self._pending))
        buffer[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def open_zst(path: Path) -> IO[bytes]:
    """The decompressed bytes of a .zst file.  Reading raises EOFError when they are damaged or cut short."""
    zstandard = zstandard_for(path)
    return io.BufferedReader(_ZstReader(path, zstandard), 1 << 17)
