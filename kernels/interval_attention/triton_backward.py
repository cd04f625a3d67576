"""Interval attention backward in Triton: a kernel per block of queries, then one per block of keys; no atomics.

With weights p = exp(s - lse) and delta = rowsum(dO * O), where out and lse are those of the whole row, the extra entry
included: ds = p (dO . v - delta), dq = scale ds k, dk = scale ds q, dv = p dO (arXiv 2205.14135, appendix B).
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.interval_attention.triton_tiles import LOG2E, load_tile, spans, store_tile

# ruff: noqa: N803


@triton.jit
def queries_kernel(
    q: tl.tensor,  # [N, H, DIM]
    k: tl.tensor,  # [M, G, DIM]
    v: tl.tensor,
    start: tl.tensor,  # [S, N]
    end: tl.tensor,  # [N]
    group_of_head: tl.tensor,  # [G]
    extra: tl.tuple,  # score [N, H] and value [N, H, DIM], or None
    out: tl.tensor,  # [N, H, DIM]
    lse: tl.tensor,  # [N, H]
    grad_out: tl.tensor,
    grad_q: tl.tensor,
    grad_extra: tl.tuple,
    delta: tl.tensor,  # [N, H]
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
    """grad_q, delta and the gradients of the extra entry."""
    first, head = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    kv_head = head // (heads // kv_heads)
    row = tl.minimum(tl.arange(0, BLOCK_M), num_rows - 1 - first)
    rows = first + row
    start += tl.load(group_of_head + kv_head) * num_rows
    grad = load_tile(grad_out + head * DIM, first, row, heads * DIM, DIM, BLOCK_D, TYPE)
    total = _statistics(lse, rows * heads + head)
    change = load_tile(out + head * DIM, first, row, heads * DIM, DIM, BLOCK_D, tl.float32)
    change = tl.sum(grad.to(tl.float32) * change, 1)
    # Rows past the last repeat it, and store its value once more.
    tl.store(delta + rows * heads + head, change)
    if extra[0] is not None:
        _extra_entry(extra, grad_extra, grad, change, total, first, num_rows, heads, head, DIM, BLOCK_M, BLOCK_D)
    queries = load_tile(q + head * DIM, first, row, heads * DIM, DIM, BLOCK_D, TYPE)
    lower, upper = tl.load(start + rows).to(tl.int32), tl.load(end + rows).to(tl.int32)
    keys = k + kv_head * DIM, v + kv_head * DIM, kv_heads * DIM, num_keys
    seen = queries, grad, total, change, lower, upper, scale * LOG2E
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    a, b, c, d = spans(start, end, first, tl.minimum(first + BLOCK_M, num_rows) - 1, BLOCK_N)
    acc = _add_keys(acc, seen, keys, a, tl.minimum(b, d), True, DIM, BLOCK_D, TYPE, PRECISION, BLOCK_N)
    acc = _add_keys(acc, seen, keys, b, c, False, DIM, BLOCK_D, TYPE, PRECISION, BLOCK_N)
    acc = _add_keys(acc, seen, keys, c, d, True, DIM, BLOCK_D, TYPE, PRECISION, BLOCK_N)
    store_tile(grad_q + head * DIM, first, num_rows - first, heads * DIM, acc * scale, DIM, BLOCK_M, BLOCK_D)


@triton.jit
def _statistics(lse: tl.tensor, places: tl.tensor) -> tl.tensor:
    """lse in base 2; +inf where a row sees nothing, so that its weights are 0 and not nan."""
    total = tl.load(lse + places)
    return tl.where(total == -float("inf"), float("inf"), total * LOG2E)


@triton.jit
def _extra_entry(
    extra: tl.tuple,
    grad_extra: tl.tuple,
    grad: tl.tensor,
    change: tl.tensor,
    total: tl.tensor,
    first: tl.tensor,
    num_rows: tl.tensor,
    heads: tl.tensor,
    head: tl.tensor,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    score, value = extra
    grad_score, grad_value = grad_extra
    grad = grad.to(tl.float32)
    row = tl.minimum(tl.arange(0, BLOCK_M), num_rows - 1 - first)
    places = (first + row) * heads + head
    weight = tl.exp2(tl.load(score + places).to(tl.float32) * LOG2E - total)
    slope = -change
    if value is not None:
        values = load_tile(value + head * DIM, first, row, heads * DIM, DIM, BLOCK_D, tl.float32)
        slope += tl.sum(grad * values, 1)
        grad *= weight[:, None]
        store_tile(grad_value + head * DIM, first, num_rows - first, heads * DIM, grad, DIM, BLOCK_M, BLOCK_D)
    tl.store(grad_score + places, weight * slope)


@triton.jit
def _add_keys(
    acc: tl.tensor,
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
) -> tl.tensor:
    """grad_q / scale [BLOCK_M, BLOCK_D] with the share of the keys [first, stop)."""
    queries, grad, total, change, lower, upper, scale = seen
    k, v, row_size, num_keys = keys
    for key in range(first, stop, BLOCK_N):
        row = tl.arange(0, BLOCK_N)
        column = key + row
        if MASKED:
            row = tl.minimum(row, num_keys - 1 - key)
        tile = load_tile(k, key, row, row_size, DIM, BLOCK_D, TYPE)
        weights = tl.exp2(tl.dot(queries, tl.trans(tile), input_precision=PRECISION) * scale - total[:, None])
        if MASKED:
            visible = (column[None, :] >= lower[:, None]) & (column[None, :] < upper[:, None])
            weights = tl.where(visible, weights, 0.0)
        values = load_tile(v, key, row, row_size, DIM, BLOCK_D, TYPE)
        slope = tl.dot(grad, tl.trans(values), input_precision=PRECISION) - change[:, None]
        acc += tl.dot((weights * slope).to(TYPE), tile, input_precision=PRECISION)
    return acc


@triton.jit
def keys_kernel(
    q: tl.tensor,  # [N, H, DIM]
    k: tl.tensor,  # [M, G, DIM]
    v: tl.tensor,
    seen_from: tl.tensor,  # [K]: the first query that sees a key
    seen_until: tl.tensor,  # [S, K]: one past the last
    group_of_head: tl.tensor,  # [G]
    lse: tl.tensor,  # [N, H]
    delta: tl.tensor,  # [N, H]
    grad_out: tl.tensor,  # [N, H, DIM]
    grad_k: tl.tensor,
    grad_v: tl.tensor,
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
    """grad_k and grad_v of the first K = num_keys keys, those that any query may see."""
    first, kv_head = tl.program_id(0) * BLOCK_N, tl.program_id(1)
    key = tl.minimum(tl.arange(0, BLOCK_N), num_keys - 1 - first)
    seen_until += tl.load(group_of_head + kv_head) * num_keys
    tiles = (
        load_tile(k + kv_head * DIM, first, key, kv_heads * DIM, DIM, BLOCK_D, TYPE),
        load_tile(v + kv_head * DIM, first, key, kv_heads * DIM, DIM, BLOCK_D, TYPE),
        tl.load(seen_from + first + key).to(tl.int32),
        tl.load(seen_until + first + key).to(tl.int32),
    )
    acc_k, acc_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32), tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    a, b, c, d = spans(seen_from, seen_until, first, tl.minimum(first + BLOCK_N, num_keys) - 1, BLOCK_M)
    acc = acc_k, acc_v
    for head in range(kv_head * (heads // kv_heads), (kv_head + 1) * (heads // kv_heads)):
        rows = q + head * DIM, grad_out + head * DIM, lse + head, delta + head, heads, num_rows, scale * LOG2E
        acc = _add_queries(acc, tiles, rows, a, tl.minimum(b, d), True, DIM, BLOCK_D, TYPE, PRECISION, BLOCK_M)
        acc = _add_queries(acc, tiles, rows, b, c, False, DIM, BLOCK_D, TYPE, PRECISION, BLOCK_M)
        acc = _add_queries(acc, tiles, rows, c, d, True, DIM, BLOCK_D, TYPE, PRECISION, BLOCK_M)
    acc_k, acc_v = acc
    store_tile(grad_k + kv_head * DIM, first, num_keys - first, kv_heads * DIM, acc_k * scale, DIM, BLOCK_N, BLOCK_D)
    store_tile(grad_v + kv_head * DIM, first, num_keys - first, kv_heads * DIM, acc_v, DIM, BLOCK_N, BLOCK_D)


@triton.jit
def _add_queries(
    acc: tl.tuple,
    tiles: tl.tuple,
    rows: tl.tuple,
    first: tl.tensor,
    stop: tl.tensor,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> tl.tuple:
    """(grad_k / scale, grad_v) [BLOCK_N, BLOCK_D] with the share of one head's queries [first, stop)."""
    acc_k, acc_v = acc
    k_tile, v_tile, lower, upper = tiles
    q, grad_out, lse, delta, heads, num_rows, scale = rows
    for start in range(first, stop, BLOCK_M):
        row = tl.arange(0, BLOCK_M)
        column = start + row
        if MASKED:
            row = tl.minimum(row, num_rows - 1 - start)
        places = (start + row) * heads
        queries = load_tile(q, start, row, heads * DIM, DIM, BLOCK_D, TYPE)
        total = _statistics(lse, places)
        weights = tl.exp2(tl.dot(k_tile, tl.trans(queries), input_precision=PRECISION) * scale - total[None, :])
        if MASKED:
            visible = (column[None, :] >= lower[:, None]) & (column[None, :] < upper[:, None])
            weights = tl.where(visible, weights, 0.0)
        grad = load_tile(grad_out, start, row, heads * DIM, DIM, BLOCK_D, TYPE)
        acc_v += tl.dot(weights.to(TYPE), grad, input_precision=PRECISION)
        change = tl.load(delta + places)
        slope = tl.dot(v_tile, tl.trans(grad), input_precision=PRECISION) - change[None, :]
        acc_k += tl.dot((weights * slope).to(TYPE), queries, input_precision=PRECISION)
    return acc_k, acc_v
