"""The `triton` backend: interval attention with the extra entry fused, forward and backward, any N and M."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.interval_attention.intervals import Intervals
from kernels.interval_attention.triton_backward import keys_kernel, queries_kernel
from kernels.interval_attention.triton_forward import forward_kernel
from kernels.triton_tuning import Tuned, config, operand_type, product_precision, refuses_device, unavailable

__all__ = ["refuses", "run", "unavailable"]

MAX_HEAD_DIM = 256
MIN_BLOCK_D = 16  # the least depth of a matrix product
_KEY = ("DIM", "width")
_INTERPRETED = {"BLOCK_M": 32, "BLOCK_N": 32}
_forward = Tuned(
    forward_kernel,
    [
        config(4, 3, BLOCK_M=64, BLOCK_N=32),
        config(4, 3, BLOCK_M=64, BLOCK_N=64),
        config(4, 3, BLOCK_M=128, BLOCK_N=32),
        config(4, 3, BLOCK_M=128, BLOCK_N=64),
        config(8, 3, BLOCK_M=128, BLOCK_N=64),
        config(8, 3, BLOCK_M=128, BLOCK_N=128),
    ],
    _KEY,
    _INTERPRETED,
)
_backward_configs = [
    config(4, 2, BLOCK_M=32, BLOCK_N=32),
    config(4, 2, BLOCK_M=64, BLOCK_N=32),
    config(4, 2, BLOCK_M=32, BLOCK_N=64),
    config(4, 2, BLOCK_M=64, BLOCK_N=64),
    config(8, 2, BLOCK_M=64, BLOCK_N=64),
    config(8, 2, BLOCK_M=128, BLOCK_N=64),
    config(8, 2, BLOCK_M=64, BLOCK_N=128),
]
_backward_queries = Tuned(queries_kernel, _backward_configs, _KEY, _INTERPRETED)
_backward_keys = Tuned(keys_kernel, _backward_configs, _KEY, _INTERPRETED)


def refuses(q: Tensor, *_: Any) -> str | None:
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it serves float32, bfloat16 and float16, not {str(q.dtype).removeprefix('torch.')}"
    if q.shape[2] > MAX_HEAD_DIM:
        return f"it serves a head_dim of up to {MAX_HEAD_DIM}, not {q.shape[2]}"
    return refuses_device(q.device)


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Intervals,
    scale: float,
    extra_score: Tensor | None,
    extra_value: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Same shapes and result as `interval_attention`. The gradients are the same to the last bit at every call."""
    out, lse = _Attention.apply(q, k, v, extra_score, extra_value, intervals, scale)  # type: ignore[no-untyped-call]
    return out, lse


class _Attention(torch.autograd.Function):
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
        q, k, v = (x.contiguous() for x in (q, k, v))
        extra = tuple(None if x is None else x.contiguous() for x in (extra_score, extra_value))
        out, lse = torch.empty_like(q), torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        shape, constants = _sizes(q, k, intervals, scale)
        with torch.cuda.device_of(q):
            _forward(
                lambda blocks: (triton.cdiv(q.shape[0], blocks["BLOCK_M"]), q.shape[1]),
                *(q, k, v, *_bounds(intervals), *extra, out, lse, q.shape[0], k.shape[0], *shape),
                **constants,
            )
        ctx.save_for_backward(q, k, v, *extra, out, lse)
        ctx.call = intervals, scale
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *extra, out, lse = ctx.saved_tensors
        intervals, scale = ctx.call
        grad_out = grad_out.contiguous()
        grad_q, delta = torch.empty_like(q), torch.empty_like(lse)
        seen = intervals.last_key
        grad_k, grad_v = (torch.empty_like(x) if seen == len(x) else torch.zeros_like(x) for x in (k, v))
        grad_extra = [None if x is None else torch.empty_like(x) for x in extra]
        shape, constants = _sizes(q, k, intervals, scale)
        with torch.cuda.device_of(q):
            _backward_queries(
                lambda blocks: (triton.cdiv(q.shape[0], blocks["BLOCK_M"]), q.shape[1]),
                *(q, k, v, *_bounds(intervals), tuple(extra), out, lse, grad_out),
                *(grad_q, tuple(grad_extra), delta, q.shape[0], k.shape[0], *shape),
                **constants,
            )
            if seen:
                _backward_keys(
                    lambda blocks: (triton.cdiv(seen, blocks["BLOCK_N"]), k.shape[1]),
                    *(q, k, v, *intervals.seen_by, intervals.group_of_head, lse, delta, grad_out),
                    *(grad_k, grad_v, q.shape[0], seen, *shape),
                    **constants,
                )
        return grad_q, grad_k, grad_v, *grad_extra, None, None


def _bounds(intervals: Intervals) -> tuple[Tensor, Tensor, Tensor]:
    return intervals.start.contiguous(), intervals.end.contiguous(), intervals.group_of_head


def _sizes(q: Tensor, k: Tensor, intervals: Intervals, scale: float) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The kernels' last arguments, and their constants."""
    head_dim = q.shape[2]
    width = intervals.memo("width class", lambda: _width_class(intervals))
    return (q.shape[1], k.shape[1], scale, width), {
        "DIM": head_dim,
        "BLOCK_D": max(MIN_BLOCK_D, triton.next_power_of_2(head_dim)),
        "TYPE": operand_type(q.dtype),
        "PRECISION": product_precision(),
    }


def _width_class(intervals: Intervals) -> int:
    """The power of two above the mean number of keys of a row: what the best block sizes depend on."""
    rows = max(1, intervals.start.numel())
    mean: int = triton.next_power_of_2(int(intervals.pairs().sum()) // rows + 1)
    return mean
