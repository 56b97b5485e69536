"""Triton kernels for gated experts whose weights lie in slots.  Importing this needs Triton.

Both read weights where they lie: from the buffer's first element, the slot's row and the field's offset.  A program
goes once through the weights of its outputs, for all rows of its expert at once, so that every weight is read once.
Sums are taken in float32, exactly (no TF32).

`table` is int32 [groups, 3]: a slot's row in the buffer, the first of its expert's places in `order`, and how many it
has.  `order` is int64 [T * k]: cells (token * k + rank), sorted by expert.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gate_and_up(
    states: tl.tensor,
    order: tl.tensor,
    table: tl.tensor,
    buffer: tl.tensor,
    gated: tl.tensor,
    slot_stride: tl.tensor,
    offset: tl.tensor,
    top_k: tl.tensor,
    ACTIVATION: tl.constexpr,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """gated [T * k, WIDTH], by place: activation(gate) * up of `states` [T, HIDDEN], at most ROWS for each expert.

    In a slot, from `offset` on: gate and, behind it, up, each [WIDTH, HIDDEN].  Grid: (tiles of WIDTH, groups).
    """
    slot, first, count = _group(table, tl.program_id(1))
    row = tl.arange(0, ROWS)
    there = row < count
    token = tl.load(order + first + row, mask=there, other=0) // top_k
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inner = tl.arange(0, DEPTH)
    left = states + token[:, None] * HIDDEN + inner[None, :]
    # Columns beyond the last read others' weights, so that no mask stands in the way of wide loads.
    right = buffer + slot * slot_stride + offset + (column % WIDTH)[None, :] * HIDDEN + inner[:, None]
    gate = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    up = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, HIDDEN, DEPTH):
        x = _rows(left + start, there, inner, HIDDEN - start, HIDDEN % DEPTH == 0)
        weights = _weights(right + start, inner, HIDDEN - start, HIDDEN % DEPTH == 0)
        gate = _add_product(x, weights, gate, WIDEN)
        weights = _weights(right + WIDTH * HIDDEN + start, inner, HIDDEN - start, HIDDEN % DEPTH == 0)
        up = _add_product(x, weights, up, WIDEN)
    output = _activated(gate, ACTIVATION) * up
    target = gated + (first + row)[:, None] * WIDTH + column[None, :]
    tl.store(target, output.to(gated.dtype.element_ty), mask=there[:, None] & (column < WIDTH)[None, :])


@triton.jit
def down(
    gated: tl.tensor,
    order: tl.tensor,
    table: tl.tensor,
    buffer: tl.tensor,
    shares: tl.tensor,
    parts: tl.tensor,
    slot_stride: tl.tensor,
    offset: tl.tensor,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """parts (float32 [T * k, SPLITS, HIDDEN], by cell): what add up to an expert's output times its share.

    `gated` as above, `shares` [T * k] by cell; in a slot, from `offset` on, [HIDDEN, WIDTH].  Grid: (tiles of HIDDEN,
    SPLITS, groups).  A sum is split so that one expert alone keeps the whole device busy; parts lie apart rather than
    being added up in memory, where their order would be anyone's.
    """
    slot, first, count = _group(table, tl.program_id(2))
    part = tl.program_id(1)
    row = tl.arange(0, ROWS)
    there = row < count
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inner = tl.arange(0, DEPTH)
    left = gated + (first + row)[:, None] * WIDTH + inner[None, :]
    right = buffer + slot * slot_stride + offset + (column % HIDDEN)[None, :] * WIDTH + inner[:, None]
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    length: tl.constexpr = tl.cdiv(tl.cdiv(WIDTH, DEPTH), SPLITS) * DEPTH
    for place in range(0, length, DEPTH):
        start = part * length + place
        x = _rows(left + start, there, inner, WIDTH - start, length * SPLITS == WIDTH)
        weights = _weights(right + start, inner, WIDTH - start, length * SPLITS == WIDTH)
        total = _add_product(x, weights, total, WIDEN)
    cell = tl.load(order + first + row, mask=there, other=0)
    share = tl.load(shares + cell, mask=there, other=0).to(tl.float32)
    target = parts + (cell * SPLITS + part)[:, None] * HIDDEN + column[None, :]
    tl.store(target, total * share[:, None], mask=there[:, None] & (column < HIDDEN)[None, :])


@triton.jit
def _group(table: tl.tensor, group: tl.tensor) -> tl.tensor:
    """A line of the table; the slot in 64 bits, as many slots have more elements than 32 bits count."""
    line = table + 3 * group
    return tl.load(line).to(tl.int64), tl.load(line + 1), tl.load(line + 2)


@triton.jit
def _rows(pointers: tl.tensor, there: tl.tensor, inner: tl.tensor, left: tl.tensor, WHOLE: tl.constexpr) -> tl.tensor:
    if WHOLE:
        return tl.load(pointers, mask=there[:, None], other=0.0)
    return tl.load(pointers, mask=there[:, None] & (inner < left)[None, :], other=0.0)


@triton.jit
def _weights(pointers: tl.tensor, inner: tl.tensor, left: tl.tensor, WHOLE: tl.constexpr) -> tl.tensor:
    """Read once, so that nothing has to make room for them in a cache."""
    if WHOLE:
        return tl.load(pointers, eviction_policy="evict_first")
    return tl.load(pointers, mask=(inner < left)[:, None], other=0.0, eviction_policy="evict_first")


@triton.jit
def _add_product(x: tl.tensor, weights: tl.tensor, total: tl.tensor, WIDEN: tl.constexpr) -> tl.tensor:
    """`total` and, in float32, x times weights.  WIDEN is for the interpreter, which cannot multiply bfloat16."""
    if WIDEN:
        return tl.dot(x.to(tl.float32), weights.to(tl.float32), total, input_precision="ieee")
    return tl.dot(x, weights, total, input_precision="ieee")


@triton.jit
def _activated(x: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """The activations that `engine.moe.gated_mlp` knows."""
    if ACTIVATION == "silu":
        return x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        tl.static_assert(ACTIVATION == "gelu_tanh")
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
