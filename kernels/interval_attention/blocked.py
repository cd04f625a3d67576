"""Interval attention in PyTorch: runs a dense kernel on the rectangles of the plan, touches no other keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.interval_attention.dense import Dense, FlashCPU, Matmul
from kernels.interval_attention.intervals import Intervals
from kernels.interval_attention.plan import Piece


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
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out, lse = _Blocked.apply(q, k, v, extra_score, extra_value, intervals, scale, dense)  # type: ignore[no-untyped-call]
    return out, lse


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
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
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
                _merge(outs[:, share], lses[:, share], part, part_lse)
    return out.flatten(1, 2), lse.flatten(1, 2)


def _merge(out: Tensor, lse: Tensor, part: Tensor | None, part_lse: Tensor) -> None:
    """Joins attention over further keys into (out, lse) in place; part None stands for the value 0."""
    share = torch.sigmoid(part_lse - lse).nan_to_num_(0.0)[..., None]  # nan: neither side sees a key
    if part is None:
        out.mul_(1 - share)
    else:
        out.lerp_(part.to(out.dtype), share)
    lse.copy_(torch.logaddexp(lse, part_lse))


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
) -> tuple[Tensor, Tensor, Tensor]:
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


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extra_score: Tensor | None,
        extra_value: Tensor | None,
        intervals: Intervals,
        scale: float,
        dense: type[Dense],
    ) -> tuple[Tensor, Tensor]:
        out, lse = _forward(q, k, v, intervals, scale, dense)
        if extra_score is not None:
            _merge(out, lse, extra_value, extra_score.to(lse.dtype))
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, extra_score, extra_value, out, lse)
        ctx.call = (intervals, scale, dense)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, extra_score, extra_value, out, lse = ctx.saved_tensors
        if grad_out.stride(-1) != 1:
            grad_out = grad_out.contiguous()
        # Rows that see nothing: exp(score - inf) is 0, exp(-inf + inf) would be nan.
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)
        grads = _backward(grad_out, q, k, v, out, lse, *ctx.call)
        grad_q, grad_k, grad_v = (grad.to(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True))
        grad_score = grad_value = None
        if extra_score is not None:
            weight = torch.exp(extra_score.to(lse.dtype) - lse)
            buffer = -out if extra_value is None else extra_value - out
            grad_score = (weight * buffer.mul_(grad_out).sum(dim=-1, dtype=lse.dtype)).to(extra_score.dtype)
            if extra_value is not None:
                grad_value = torch.mul(grad_out, weight[..., None], out=buffer).to(extra_value.dtype)
        return grad_q, grad_k, grad_v, grad_score, grad_value, None, None, None
