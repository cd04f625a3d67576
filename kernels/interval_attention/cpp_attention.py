"""The `cpp` backend of interval attention: one pass each way over the visible keys, the extra entry included.

Its sources are kernels/native/attention_*.cpp; the structures of attention.h are mirrored here field by field.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.interval_attention.intervals import Intervals
from kernels.native.library import function, unavailable
from kernels.native.tensors import VECTOR, refuses_tensors

__all__ = ["refuses", "run", "unavailable"]

MAX_DIM = 256
SCRATCH_BYTES = 1 << 28
"""What the backward may always take for gradients of the queries that threads sum up apart from each other."""


class _Matrix(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("head", ctypes.c_int64))


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("queries", "keys", "heads", "kv_heads", "dim", "threads")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("start", "end", "group")),
        *((name, _Matrix) for name in ("q", "k", "v", "out")),
        *((name, ctypes.c_void_p) for name in ("lse", "extra_score")),
        *((name, _Matrix) for name in ("extra_value", "grad_out", "grad_q", "grad_k", "grad_v", "grad_value")),
        *((name, ctypes.c_void_p) for name in ("grad_score", "delta", "lse2", "parts")),
        ("segments", ctypes.c_int64),
    )


def refuses(q: Tensor, *_: Any) -> str | None:
    if q.shape[2] % VECTOR or q.shape[2] > MAX_DIM:
        return f"head_dim must be a multiple of {VECTOR} up to {MAX_DIM}; it is {q.shape[2]}"
    return refuses_tensors(q)


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Intervals,
    scale: float,
    extra_score: Tensor | None,
    extra_value: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Same shapes and result as `interval_attention`."""
    out, lse = _Function.apply(q, k, v, extra_score, extra_value, intervals, scale)  # type: ignore[no-untyped-call]
    return out, lse


class _Function(torch.autograd.Function):
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
    ) -> tuple[Tensor, Tensor]:
        q, k, v = _readable(q), _readable(k), _readable(v)
        score = None if extra_score is None else extra_score.to(torch.float32).contiguous()
        value = None if extra_value is None else _readable(extra_value.to(torch.float32))
        out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:2])
        call = _call(q, k, v, score, value, out, lse, intervals, scale)
        function("braid_attention_forward")(ctypes.byref(call))
        ctx.save_for_backward(q, k, v, score, value, out, lse)
        ctx.intervals, ctx.scale = intervals, scale
        ctx.extra_types = tuple(None if x is None else x.dtype for x in (extra_score, extra_value))
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, score, value, out, lse = ctx.saved_tensors
        intervals, grad_out = ctx.intervals, _readable(grad_out)
        call = _call(q, k, v, score, value, out, lse, intervals, ctx.scale)
        grad_q, grad_k, grad_v = q.new_zeros(q.shape), q.new_empty(k.shape), q.new_empty(v.shape)
        grad_score = None if score is None else torch.empty_like(score)
        grad_value = None if value is None else q.new_empty(value.shape)
        scratch = q.new_empty(2, q.shape[1], q.shape[0])
        call.segments = _segments(q, k)
        parts = q.new_zeros(call.segments - 1, *q.shape)
        call.grad_out, call.grad_value = _matrix(grad_out), _matrix(grad_value)
        call.grad_q, call.grad_k, call.grad_v = map(_matrix, (grad_q, grad_k, grad_v))
        call.grad_score = None if grad_score is None else grad_score.data_ptr()
        call.delta, call.lse2, call.parts = scratch[0].data_ptr(), scratch[1].data_ptr(), parts.data_ptr()
        function("braid_attention_backward")(ctypes.byref(call))
        extras = (
            None if x is None else x.to(dtype)
            for x, dtype in zip((grad_score, grad_value), ctx.extra_types, strict=True)
        )
        return grad_q, grad_k, grad_v, *extras, None, None


def _segments(q: Tensor, k: Tensor) -> int:
    """Into how many ranges the keys are divided: one where the heads alone keep all threads busy.

    Each range but one needs a copy of the queries' gradient. Beyond SCRATCH_BYTES these take no more than the call
    holds anyway (q, out, k, v and their gradients), even if some threads of a large machine then have nothing to do.
    """
    keys, kv_heads = k.shape[:2]
    threads = torch.get_num_threads()
    if kv_heads % threads == 0 or not q.numel():
        return 1
    copies = max(SCRATCH_BYTES // (4 * q.numel()), 4 * (q.numel() + k.numel()) // q.numel())
    return max(1, min(-(-2 * threads // kv_heads), keys // 64, 1 + copies))


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score: Tensor | None,
    value: Tensor | None,
    out: Tensor,
    lse: Tensor,
    intervals: Intervals,
    scale: float,
) -> _Attention:
    """Holds addresses alone: every tensor must outlive it."""
    start, end, group = intervals.memo("cpp", lambda: _bounds(intervals))
    return _Attention(
        queries=q.shape[0],
        keys=k.shape[0],
        heads=q.shape[1],
        kv_heads=k.shape[1],
        dim=q.shape[2],
        threads=torch.get_num_threads(),
        scale=scale,
        start=start.data_ptr(),
        end=end.data_ptr(),
        group=group.data_ptr(),
        q=_matrix(q),
        k=_matrix(k),
        v=_matrix(v),
        out=_matrix(out),
        lse=lse.data_ptr(),
        extra_score=None if score is None else score.data_ptr(),
        extra_value=_matrix(value),
    )


def _bounds(intervals: Intervals) -> tuple[Tensor, Tensor, Tensor]:
    return intervals.start.contiguous(), intervals.end.contiguous(), intervals.group_of_head.contiguous()


def _matrix(x: Tensor | None) -> _Matrix:
    return _Matrix(None, 0, 0) if x is None else _Matrix(x.data_ptr(), x.stride(0), x.stride(1))


def _readable(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()
