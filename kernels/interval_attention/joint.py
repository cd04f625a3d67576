"""One more softmax entry beside the listed keys, forward and backward, around any attention over the keys alone.

With the joint out and logsumexp the flash backward formula (arXiv 2205.14135, appendix B) is exact for the listed keys
as it stands; the own entry has p = exp(score - lse), d value = p dO, d score = p (dO . value - rowsum(dO * O)).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.interval_attention.dense import Gradients
from kernels.interval_attention.intervals import Intervals


class ListedKeys(Protocol):
    """Attention over the listed keys. Shapes as in `interval_attention`; lse is at least float32."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, intervals: Intervals, scale: float) -> tuple[Tensor, Tensor]:
        """(out, lse) of the listed keys; out in q's type or lse's, and both new."""

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
        """Gradients of q, k and v, given the joint out and lse; lse is +inf where a row sees nothing."""


def joint_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Intervals,
    scale: float,
    extra_score: Tensor | None,
    extra_value: Tensor | None,
    listed: ListedKeys,
) -> tuple[Tensor, Tensor]:
    """Same shapes and result as `interval_attention`."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out, lse = _Joint.apply(q, k, v, extra_score, extra_value, intervals, scale, listed)  # type: ignore[no-untyped-call]
    return out, lse


def merge(out: Tensor, lse: Tensor, part: Tensor | None, part_lse: Tensor) -> None:
    """Joins attention over further keys into (out, lse) in place; part None stands for the value 0."""
    share = torch.sigmoid(part_lse - lse).nan_to_num_(0.0)[..., None]  # nan: neither side sees a key
    if part is None:
        out.mul_(1 - share)
    else:
        out.lerp_(part.to(out.dtype), share)
    lse.copy_(torch.logaddexp(lse, part_lse))


class _Joint(torch.autograd.Function):
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
        listed: ListedKeys,
    ) -> tuple[Tensor, Tensor]:
        out, lse = listed.forward(q, k, v, intervals, scale)
        if extra_score is not None:
            out = out.to(lse.dtype)
            merge(out, lse, extra_value, extra_score.to(lse.dtype))
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, extra_score, extra_value, out, lse)
        ctx.call = (intervals, scale)
        ctx.listed = listed
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
        grads = ctx.listed.backward(grad_out, q, k, v, out, lse, *ctx.call)
        grad_q, grad_k, grad_v = (grad.to(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True))
        grad_score = grad_value = None
        if extra_score is not None:
            weight = torch.exp(extra_score.to(lse.dtype) - lse)
            buffer = -out if extra_value is None else extra_value - out
            grad_score = (weight * buffer.mul_(grad_out).sum(dim=-1, dtype=lse.dtype)).to(extra_score.dtype)
            if extra_value is not None:
                grad_value = torch.mul(grad_out, weight[..., None], out=buffer).to(extra_value.dtype)
        return grad_q, grad_k, grad_v, grad_score, grad_value, None, None, None
