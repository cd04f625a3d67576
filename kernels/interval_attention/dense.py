"""Attention over one dense rectangle with a given logsumexp: the tile kernels under `blocked`.

Shapes: q, grad_out, out [B, H, rows, D]; k, v [B, H, keys, D]; lse [B, H, rows]; bias [rows, keys] or None.
Forward returns (out, lse of these keys alone). Backward takes the out and lse of the *whole* row: the gradients of the
rectangle's keys are then exact and add up over rectangles (FlashAttention, arXiv 2205.14135, appendix B).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from kernels.precision import at_least_float32

Gradients = tuple[Tensor, Tensor, Tensor]


class Dense(Protocol):
    """A tile kernel."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]: ...

    @staticmethod
    def backward(
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        bias: Tensor | None,
        causal: bool,
        scale: float,
    ) -> Gradients: ...


class FlashCPU:
    """PyTorch's CPU flash kernel. It skips the empty half of a causal triangle; fully masked rows say lse 0."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=bias, scale=scale
        )
        return out, lse

    @staticmethod
    def backward(
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        bias: Tensor | None,
        causal: bool,
        scale: float,
    ) -> Gradients:
        grad_q, grad_k, grad_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, q, k, v, out, lse, 0.0, causal, attn_mask=bias, scale=scale
        )
        return grad_q, grad_k, grad_v


class Matmul:
    """Plain matrix products on any device; never given causal triangles, holds rows x keys scores in lse's type."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        wide = at_least_float32(q.dtype)
        q, k, v = q.to(wide), k.to(wide), v.to(wide)
        scores = _scores(q, k, bias, scale)
        lse = scores.logsumexp(dim=-1)
        return scores.sub_(_no_minus_infinity(lse)[..., None]).exp_() @ v, lse

    @staticmethod
    def backward(
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        bias: Tensor | None,
        causal: bool,
        scale: float,
    ) -> Gradients:
        grad_out, q, k, v, out = (x.to(lse.dtype) for x in (grad_out, q, k, v, out))
        weights = _scores(q, k, bias, scale).sub_(lse[..., None]).exp_()
        grad_v = weights.transpose(-1, -2) @ grad_out
        delta = (grad_out * out).sum(dim=-1, keepdim=True)
        grad_scores = (grad_out @ v.transpose(-1, -2)).sub_(delta).mul_(weights).mul_(scale)
        return grad_scores @ k, grad_scores.transpose(-1, -2) @ q, grad_v


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    scores = (q @ k.transpose(-1, -2)).mul_(scale)
    return scores if bias is None else scores.add_(bias)


def _no_minus_infinity(lse: Tensor) -> Tensor:
    return lse.masked_fill(lse == -torch.inf, torch.inf)
