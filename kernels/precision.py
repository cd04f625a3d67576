"""How precisely sums are kept."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type of softmax statistics, losses, angles and recurrent states: float32, or float64 for float64 tensors."""
    return torch.promote_types(dtype, torch.float32)


def product_dtype(x: Tensor) -> torch.dtype:
    """The type of what a linear layer makes of x: its own, or under autocast that which float64 alone escapes."""
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)
