"""How the parameters of one expert lie in its blob: one row of bytes that is stored, checked and copied as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final, NamedTuple

import torch

ALIGNMENT: Final = 256
"""Bytes.  Fields and blobs begin at multiples of it: enough for any element type and for vectorised kernels."""


class Field(NamedTuple):
    """One parameter of an expert; `offset` counts bytes from the blob's start."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * int(self.dtype.itemsize)


@dataclass(frozen=True, slots=True)
class Layout:
    """The fields of a blob, in the order given and each on a 256-byte boundary; `size` is a blob's bytes, a multiple of
    256, so that blobs laid end to end keep every field aligned."""

    fields: tuple[Field, ...]
    size: int

    @classmethod
    def of(cls, parameters: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> Layout:
        """The layout of an expert with these parameters, name to (shape, dtype)."""
        fields: list[Field] = []
        end = 0
        for name, (shape, dtype) in parameters.items():
            fields.append(Field(name, tuple(shape), dtype, end))
            end = _aligned(end + fields[-1].nbytes)
        return cls(tuple(fields), end)

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters alone, without the gaps."""
        return sum(field.nbytes for field in self.fields)

    def views(self, blob: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters that lie in `blob` (uint8 [size]), by name: views of it, no copies."""
        return {
            field.name: blob[field.offset : field.offset + field.nbytes].view(field.dtype).view(field.shape)
            for field in self.fields
        }


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
