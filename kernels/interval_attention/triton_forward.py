"""Interval attention forward in Triton: one program per block of queries and head, online softmax over its keys."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.interval_attention.triton_tiles import LOG2E, load_tile, spans, store_tile

# ruff: noqa: N803


@triton.jit
def forward_kernel(
    q: tl.tensor,  # [N, H, DIM]
    k: tl.tensor,  # [M, G, DIM]
    v: tl.tensor,
    start: tl.tensor,  # [S, N]
    end: tl.tensor,  # [N]
    group_of_head: tl.tensor,  # [G]
    extra_score: tl.tensor,  # [N, H] or None
    extra_value: tl.tensor,  # [N, H, DIM] or None
    out: tl.tensor,  # [N, H, DIM]
    lse: tl.tensor,  # [N, H]
    num_rows: tl.tensor,
    num_keys: tl.tensor,
    heads: tl.tensor,
    kv_heads: tl.tensor,
    scale: tl.tensor,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    first, head = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    kv_head = head // (heads // kv_heads)
    row = tl.minimum(tl.arange(0, BLOCK_M), num_rows - 1 - first)
    rows = first + row
    start += tl.load(group_of_head + kv_head) * num_rows
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if extra_score is not None:
        top = tl.load(extra_score + rows * heads + head).to(tl.float32) * LOG2E
    total = tl.where(top == -float("inf"), 0.0, 1.0)
    if extra_value is not None:
        acc = load_tile(extra_value + head * DIM, first, row, heads * DIM, DIM, BLOCK_D, tl.float32) * total[:, None]
    state = top, total, acc
    queries = load_tile(q + head * DIM, first, row, heads * DIM, DIM, BLOCK_D, TYPE)
    lower, upper = tl.load(start + rows).to(tl.int32), tl.load(end + rows).to(tl.int32)
    keys = k + kv_head * DIM, v + kv_head * DIM, kv_heads * DIM, num_keys
    seen = queries, lower, upper, scale * LOG2E
    a, b, c, d = spans(start, end, first, tl.minimum(first + BLOCK_M, num_rows) - 1, BLOCK_N)
    state = _attend(state, seen, keys, a, tl.minimum(b, d), True, DIM, BLOCK_D, TYPE, PRECISION, BLOCK_N)
    state = _attend(state, seen, keys, b, c, False, DIM, BLOCK_D, TYPE, PRECISION, BLOCK_N)
    top, total, acc = _attend(state, seen, keys, c, d, True, DIM, BLOCK_D, TYPE, PRECISION, BLOCK_N)
    total = tl.where(total == 0.0, 1.0, total)  # rows that see nothing: out 0 / 1, lse -inf + 0
    acc = acc / total[:, None]
    store_tile(out + head * DIM, first, num_rows - first, heads * DIM, acc, DIM, BLOCK_M, BLOCK_D)
    # Rows past the last repeat it, and store its value once more.
    tl.store(lse + rows * heads + head, (top + tl.log2(total)) / LOG2E)


@triton.jit
def _attend(
    state: tl.tuple,
    seen: tl.tuple,
    keys: tl.tuple,
    first: tl.tensor,
    stop: tl.tensor,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tuple:
    """(largest score so far, sum of weights relative to it, weighted values) after the keys [first, stop)."""
    top, total, acc = state
    queries, lower, upper, scale = seen
    k, v, row_size, num_keys = keys
    for key in range(first, stop, BLOCK_N):
        row = tl.arange(0, BLOCK_N)
        column = key + row
        if MASKED:
            row = tl.minimum(row, num_keys - 1 - key)
        tile = load_tile(k, key, row, row_size, DIM, BLOCK_D, TYPE)
        scores = tl.dot(queries, tl.trans(tile), input_precision=PRECISION) * scale
        if MASKED:
            visible = (column[None, :] >= lower[:, None]) & (column[None, :] < upper[:, None])
            scores = tl.where(visible, scores, -float("inf"))
        highest = tl.maximum(top, tl.max(scores, 1))
        # A row that has seen nothing yet: -inf - -inf would be nan.
        base = tl.where(highest == -float("inf"), 0.0, highest)
        shrink = tl.exp2(top - base)
        weights = tl.exp2(scores - base[:, None])
        total = total * shrink + tl.sum(weights, 1)
        tile = load_tile(v, key, row, row_size, DIM, BLOCK_D, TYPE)
        acc = acc * shrink[:, None] + tl.dot(weights.to(TYPE), tile, input_precision=PRECISION)
        top = highest
    return top, total, acc
