"""What the Triton kernels of interval attention share: loading tiles, and where a block of rows needs masks."""

from __future__ import annotations

import triton
import triton.language as tl

# ruff: noqa: N803

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_tile(
    base: tl.tensor,
    first: tl.tensor,
    rows: tl.tensor,
    row_size: tl.tensor,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TYPE: tl.constexpr,
) -> tl.tensor:
    """[rows, BLOCK_D], the rows counted from `first`; columns from DIM on are 0. row_size: elements between rows."""
    column = tl.arange(0, BLOCK_D)[None, :]
    # 64 bits for the block, which may lie anywhere, and 32 within it: half the registers.
    pointers = base + tl.cast(first, tl.int64) * row_size + (rows[:, None] * row_size + column)
    tile = tl.load(pointers) if BLOCK_D == DIM else tl.load(pointers, mask=column < DIM, other=0.0)
    return tile.to(TYPE)


@triton.jit
def store_tile(
    base: tl.tensor,
    first: tl.tensor,
    count: tl.tensor,
    row_size: tl.tensor,
    tile: tl.tensor,
    DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Stores the first `count` rows of a tile [BLOCK_ROWS, BLOCK_D] as rows `first` onwards."""
    row, column = tl.arange(0, BLOCK_ROWS)[:, None], tl.arange(0, BLOCK_D)[None, :]
    pointers = base + tl.cast(first, tl.int64) * row_size + (row * row_size + column)
    tl.store(pointers, tile, mask=(row < count) & (column < DIM))


@triton.jit
def spans(
    start: tl.tensor,
    end: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tuple:
    """Bounds a <= b <= c, and d, of the blocks that the rows first..last, of intervals [start, end), see.

    Blocks in [b, c) are seen by all the rows; those in [a, b) and [c, d) need masks. Where d < b, [a, d) is all.
    """
    lowest = tl.load(start + first).to(tl.int32)
    highest = tl.load(end + last).to(tl.int32)
    inner = lowest + tl.cdiv(tl.load(start + last).to(tl.int32) - lowest, BLOCK) * BLOCK
    outer = inner + tl.maximum(tl.load(end + first).to(tl.int32) - inner, 0) // BLOCK * BLOCK
    return lowest, inner, outer, highest
