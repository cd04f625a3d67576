"""Interval attention in PyTorch: runs a dense kernel on the rectangles of the plan, touches no other keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.interval_attention.dense import Dense, FlashCPU, Gradients, Matmul
from kernels.interval_attention.intervals import Intervals
from kernels.interval_attention.joint import joint_attention, merge
from kernels.interval_attention.plan import Piece
from kernels.precision import at_least_float32


def blocked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Intervals,
    scale: float,
    extra_score: Tensor | None,
    extra_value: Tensor | None,
    dense: type[Dense] | None = None,
) -> tuple[Tensor, Tensor]:
    """Same shapes and result as `interval_attention`. dense: the tile kernel; None takes the best of the device."""
    if dense is None:
        dense = FlashCPU if q.device.type == "cpu" else Matmul
    return joint_attention(q, k, v, intervals, scale, extra_score, extra_value, _Blocked(dense))


@dataclass(frozen=True)
class _Blocked:
    """Attention over the listed keys by blocks, each with the tile kernel."""

    dense: type[Dense]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, intervals: Intervals, scale: float) -> tuple[Tensor, Tensor]:
        return _forward(q, k, v, intervals, scale, self.dense)

    def backward(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        intervals: Intervals,
        scale: float,
    ) -> Gradients:
        return _backward(grad_out, q, k, v, out, lse, intervals, scale, self.dense)


class _Job(NamedTuple):
    """One piece of the plan for one group of heads."""

    piece: Piece
    heads: slice  # key/value heads
    bias: Tensor | None
    blind: Tensor | None  # [rows] bool: rows of the piece that see none of its keys


def _jobs(intervals: Intervals, dense: type[Dense], dtype: torch.dtype, device: torch.device) -> Iterator[_Job]:
    first = 0
    plans = intervals.plan if dense is FlashCPU else intervals.bounded_plan
    for pieces, heads in zip(plans, intervals.kv_heads, strict=True):
        for piece in pieces:
            bias, blind = (None, None) if piece.pattern is None else piece.pattern.bias(dtype, device)
            yield _Job(piece, slice(first, first + heads), bias, blind)
        first += heads


def _windows(x: Tensor, first: int, length: int, step: int, count: int) -> Tensor:
    """[count, ..., length]: a view of `count` windows over dim 0, `step` apart; they may overlap."""
    return x[first : first + (count - 1) * step + length].unfold(0, length, max(step, 1))


def _rows(x: Tensor, job: _Job) -> Tensor:
    """x [N, G, r, D] or [N, G, r] -> a view [count, r, heads, rows(, D)]."""
    piece = job.piece
    view = _windows(x[:, job.heads], piece.first_row, piece.num_rows, piece.row_step, piece.count)
    return view.permute(0, 2, 1, 4, 3) if x.dim() == 4 else view.permute(0, 2, 1, 3)


def _keys(x: Tensor, job: _Job) -> Tensor:
    """x [M, G, D] -> a view [count, 1, heads, keys, D]."""
    piece = job.piece
    view = _windows(x[:, job.heads], piece.first_key, piece.num_keys, piece.key_step, piece.count)
    return view.permute(0, 1, 3, 2)[:, None]


def _shares(job: _Job, repeats: int) -> Iterator[slice]:
    """Slices of the r queries per key/value head for which (count, r) flattens into a batch without a copy."""
    if job.piece.count == 1:
        yield slice(0, repeats)
    else:
        yield from (slice(j, j + 1) for j in range(repeats))


def _share(rows: Tensor, share: slice) -> Tensor:
    return rows[:, share].flatten(0, 1)


def _expand(keys: Tensor, share: slice) -> Tensor:
    return keys.expand(-1, share.stop - share.start, -1, -1, -1).flatten(0, 1)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, intervals: Intervals, scale: float, dense: type[Dense]
) -> tuple[Tensor, Tensor]:
    (n, h, d), g = q.shape, k.shape[1]
    wide = at_least_float32(q.dtype)
    grouped = torch.unflatten(q, 1, (g, h // g))
    out = torch.zeros(n, g, h // g, d, dtype=wide, device=q.device)
    lse = torch.full((n, g, h // g), -torch.inf, dtype=wide, device=q.device)
    for job in _jobs(intervals, dense, wide, q.device):
        queries, keys, values, outs, lses = (
            _rows(grouped, job),
            _keys(k, job),
            _keys(v, job),
            _rows(out, job),
            _rows(lse, job),
        )
        for share in _shares(job, h // g):
            part, part_lse = dense.forward(
                _share(queries, share),
                _expand(keys, share),
                _expand(values, share),
                job.bias,
                job.piece.causal,
                scale,
            )
            if job.blind is not None:
                part_lse.masked_fill_(job.blind, -torch.inf)
            shape = (job.piece.count, share.stop - share.start)
            part, part_lse = torch.unflatten(part, 0, shape), torch.unflatten(part_lse, 0, shape)
            if job.piece.fresh:
                outs[:, share].copy_(part)
                lses[:, share].copy_(part_lse)
            else:
                merge(outs[:, share], lses[:, share], part, part_lse)
    return out.flatten(1, 2), lse.flatten(1, 2)


def _backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    intervals: Intervals,
    scale: float,
    dense: type[Dense],
) -> Gradients:
    h, g = q.shape[1], k.shape[1]
    grad_q, grad_k, grad_v = (torch.zeros(x.shape, dtype=lse.dtype, device=x.device) for x in (q, k, v))
    per_head = [torch.unflatten(x, 1, (g, h // g)) for x in (grad_out, q, out, lse, grad_q)]
    for job in _jobs(intervals, dense, lse.dtype, q.device):
        grads, queries, outs, lses, grad_queries = (_rows(x, job) for x in per_head)
        keys, values = _keys(k, job), _keys(v, job)
        for share in _shares(job, h // g):
            part_q, part_k, part_v = dense.backward(
                _share(grads, share),
                _share(queries, share),
                _expand(keys, share),
                _expand(values, share),
                _share(outs, share),
                _share(lses, share),
                job.bias,
                job.piece.causal,
                scale,
            )
            shape = (job.piece.count, share.stop - share.start)
            grad_queries[:, share].add_(torch.unflatten(part_q, 0, shape))
            _add_windows(grad_k[:, job.heads], torch.unflatten(part_k, 0, shape), job.piece)
            _add_windows(grad_v[:, job.heads], torch.unflatten(part_v, 0, shape), job.piece)
    return grad_q, grad_k, grad_v


def _add_windows(total: Tensor, parts: Tensor, piece: Piece) -> None:
    """Adds parts [count, r, heads, keys, D] to the windows of total [M, heads, D] they belong to."""
    parts = parts.sum(dim=1, dtype=total.dtype) if parts.shape[1] > 1 else parts[:, 0]
    step = piece.key_step if piece.count > 1 else piece.num_keys
    for offset in range(0, piece.num_keys, step):  # windows cut at `step` keys do not overlap
        part = parts[:, :, offset : offset + step]
        windows = _windows(total, piece.first_key + offset, part.shape[2], step, piece.count)
        windows.permute(0, 1, 3, 2).add_(part)
