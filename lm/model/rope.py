"""Rotary position embedding (RoFormer, arXiv 2104.09864), half-split as in Llama."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine [n, 1, head_dim / 2] of the angles `positions[n] * theta^(-2j / head_dim)`.

    Angles are formed in float64: float32 loses a thousandth of a radian by position 16,384.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angles = positions.double()[:, None, None] * theta**-exponents
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the pairs (x[..., j], x[..., j + d/2]) of x [n, heads, d] by the angles of the table."""
    cos, sin = table
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
