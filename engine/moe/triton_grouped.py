"""Experts in slots computed by Triton kernels, all those of an effect at once.  Importing this needs Triton."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Final, NamedTuple

import torch
from triton import JITFunction

from engine.memory.slot_buffer import SlotBuffer
from engine.moe import triton_kernels as kernels
from engine.moe.gated_mlp import Gated

MOST_TOKENS: Final = 32
"""Of a pass: with more, experts have so many rows that weights are no longer what takes the time."""

_INTERPRETED: Final = not isinstance(kernels.down, JITFunction)

_BUSY: Final = 512
"""Programs that keep any device's memory busy: four for each of 128 multiprocessors."""
_SHORTEST: Final = 4
"""Blocks of a part of a sum: with fewer, a program has hardly begun to read ahead when it is over."""


class Tiles(NamedTuple):
    """How the programs of a kernel go through weights: `columns` outputs each, `depth` bytes of each output's weights
    at a time, `stages` - 1 times ahead."""

    columns: int
    depth: int = 256
    warps: int = 4
    stages: int = 3


class Tiling(NamedTuple):
    """How the two kernels share their work; none of it depends on the device, nor on which experts come together, so
    that neither do results."""

    gate_up: Tiles = Tiles(32)
    down: Tiles = Tiles(64)

    def splits(self, experts: Gated) -> int:
        """Into how many parts the sums of `down` are split."""
        tiles = -(-experts.hidden // self.down.columns)
        blocks = -(-experts.width * int(experts.dtype.itemsize) // self.down.depth)
        return max(1, min(blocks // _SHORTEST, -(-_BUSY // tiles)))


TILING: Final = Tiling()


class GroupedRows:
    """Which rows of a layer's input go to which expert, and what the experts made of them.

    A row is a token with one of its experts; rows are sorted by expert, then token.  Contributions stay in float32 and
    apart until all are there.
    """

    def __init__(
        self,
        slots: SlotBuffer,
        gated: Gated,
        states: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        counts: Mapping[int, int],
        tiling: Tiling = TILING,
    ) -> None:
        """`states` [T, hidden], T at most `MOST_TOKENS`; `experts` (int64) and `weights` [T, k]; `counts`: rows of each
        expert that has any."""
        self._slots = slots
        self._gated = gated
        self._tiling = tiling
        self._states = states.contiguous()
        self._ranks = experts.shape[1]
        self._order = experts.reshape(-1).argsort(stable=True)
        self._shares = weights.reshape(-1)
        self._counts = counts
        ids = sorted(counts)
        self._first = dict(zip(ids, accumulate((counts[expert] for expert in ids), initial=0), strict=False))
        cells, splits = experts.numel(), tiling.splits(gated)
        self._hidden = states.new_empty((cells, gated.width))
        self._parts = torch.zeros((cells, splits, gated.hidden), dtype=torch.float32, device=states.device)
        self._noted: dict[int, int] = {}
        self._done: set[int] = set()

    def inputs(self, expert: int) -> torch.Tensor:
        """What `expert` computes with [n, hidden]."""
        return self._states[self._cells(expert) // self._ranks]

    def compute(self, expert: int, slot: int) -> None:
        """Note an expert, for `launch`."""
        self._noted[expert] = slot

    def launch(self) -> None:
        """Enqueue the experts noted."""
        noted, gated, tiling = self._noted, self._gated, self._tiling
        if not noted:
            return
        lines = [(self._slots.row(slot), self._first[expert], self._counts[expert]) for expert, slot in noted.items()]
        buffer = self._slots.blobs.view(gated.dtype)
        rows = 16 if len(self._states) <= 16 else MOST_TOKENS
        sizes = {"HIDDEN": gated.hidden, "WIDTH": gated.width, "ROWS": rows}
        with torch.cuda.device_of(self._states):
            table = self._on_device(lines)
            kernels.gate_and_up[_tiles(gated.width, tiling.gate_up), len(lines)](
                self._states,
                self._order,
                table,
                buffer,
                self._hidden,
                buffer.stride(0),
                gated.gate_up,
                self._ranks,
                ACTIVATION=gated.activation,
                **sizes,
                **_options(tiling.gate_up, gated.hidden, gated.dtype),
            )
            splits = self._parts.shape[1]
            kernels.down[_tiles(gated.hidden, tiling.down), splits, len(lines)](
                self._hidden,
                self._order,
                table,
                buffer,
                self._shares,
                self._parts,
                buffer.stride(0),
                gated.down,
                SPLITS=splits,
                **sizes,
                **_options(tiling.down, gated.width, gated.dtype),
            )
        self._done |= noted.keys()
        noted.clear()

    def put(self, expert: int, output: torch.Tensor) -> None:
        """The output [n, hidden] of an expert that was computed elsewhere."""
        cells = self._cells(expert)
        self._parts[cells, 0] = output.float() * self._shares[cells, None].float()
        self._done.add(expert)

    def combined(self) -> torch.Tensor:
        """What all experts add up to [T, hidden]; each must have its output."""
        if missing := self._counts.keys() - self._done:
            raise RuntimeError(f"experts {sorted(missing)} have no output")
        tokens, hidden = self._states.shape
        return self._parts.view(tokens, -1, hidden).sum(1).to(self._states.dtype)

    def _cells(self, expert: int) -> torch.Tensor:
        first = self._first[expert]
        return self._order[first : first + self._counts[expert]]

    def _on_device(self, lines: list[tuple[int, int, int]]) -> torch.Tensor:
        """A kernel's table, without waiting for the device."""
        device = self._states.device
        table = torch.tensor(lines, dtype=torch.int32, pin_memory=device.type == "cuda")
        return table.to(device, non_blocking=True)


def _tiles(outputs: int, tiles: Tiles) -> int:
    return -(-outputs // tiles.columns)


def _options(tiles: Tiles, inputs: int, dtype: torch.dtype) -> dict[str, int]:
    """The constants of a launch; of small experts no more than there is, down to what a matrix product needs."""
    depth = min(tiles.depth // dtype.itemsize, max(16, 1 << (inputs - 1).bit_length()))
    constants = {"COLUMNS": tiles.columns, "DEPTH": depth, "WIDEN": _INTERPRETED}
    # Said out loud, as versions of Triton differ in whether they fuse by themselves.
    return {**constants, "num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": True}
