"""The `triton` backend: interval attention with the extra entry fused, forward and backward, any N and M."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.interval_attention.intervals import Intervals
from kernels.interval_attention.triton_backward import keys_kernel, queries_kernel
from kernels.interval_attention.triton_blocks import Blocks, blocks_for, depth, device_of
from kernels.interval_attention.triton_forward import forward_kernel
from kernels.triton_tuning import INTERPRETED, operand_type, product_precision, refuses_device, unavailable

__all__ = ["refuses", "run", "unavailable"]

MAX_HEAD_DIM = 256
_INTERPRETED = Blocks(32, 32, 4, 1)


def refuses(q: Tensor, *_: Any) -> str | None:
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it serves float32, bfloat16 and float16, not {str(q.dtype).removeprefix('torch.')}"
    if q.shape[2] > MAX_HEAD_DIM:
        return f"it serves a head_dim of up to {MAX_HEAD_DIM}, not {q.shape[2]}"
    if reason := refuses_device(q.device):
        return reason
    try:
        _blocks(q)
    except ValueError as error:
        return str(error)
    return None


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
        blocks = _blocks(q)[0]
        shape, constants = _sizes(q, k, scale)
        with torch.cuda.device_of(q):
            forward_kernel[triton.cdiv(q.shape[0], blocks.own), q.shape[1]](
                *(q, k, v, *_bounds(intervals), *extra, out, lse, q.shape[0], k.shape[0], *shape),
                **constants,
                **_launch(blocks, "BLOCK_M", "BLOCK_N"),
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
        blocks = _blocks(q)[1]
        shape, constants = _sizes(q, k, scale)
        with torch.cuda.device_of(q):
            queries_kernel[triton.cdiv(q.shape[0], blocks.own), q.shape[1]](
                *(q, k, v, *_bounds(intervals), tuple(extra), out, lse, grad_out),
                *(grad_q, tuple(grad_extra), delta, q.shape[0], k.shape[0], *shape),
                **constants,
                **_launch(blocks, "BLOCK_M", "BLOCK_N"),
            )
            if seen:
                keys_kernel[triton.cdiv(seen, blocks.own), k.shape[1]](
                    *(q, k, v, *intervals.seen_by, intervals.group_of_head, lse, delta, grad_out),
                    *(grad_k, grad_v, q.shape[0], seen, *shape),
                    **constants,
                    **_launch(blocks, "BLOCK_N", "BLOCK_M"),
                )
        return grad_q, grad_k, grad_v, *grad_extra, None, None


def _bounds(intervals: Intervals) -> tuple[Tensor, Tensor, Tensor]:
    return intervals.start.contiguous(), intervals.end.contiguous(), intervals.group_of_head


def _blocks(q: Tensor) -> tuple[Blocks, Blocks]:
    """Those of the forward and of the backward kernels. Raises ValueError where there are none."""
    if INTERPRETED:
        return _INTERPRETED, _INTERPRETED
    device = device_of(q.device.index or 0)
    return blocks_for(device, q.shape[2], q.dtype)


def _launch(blocks: Blocks, own: str, passing: str) -> dict[str, int]:
    return {own: blocks.own, passing: blocks.passing, "num_warps": blocks.warps, "num_stages": blocks.stages}


def _sizes(q: Tensor, k: Tensor, scale: float) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The kernels' last arguments, and their constants."""
    return (q.shape[1], k.shape[1], scale), {
        "DIM": q.shape[2],
        "BLOCK_D": depth(q.shape[2]),
        "TYPE": operand_type(q.dtype),
        "PRECISION": product_precision(),
    }
