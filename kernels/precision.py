"""How precisely sums are kept."""

from __future__ import annotations

import torch


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type of softmax statistics, losses, angles and recurrent states: float32, or float64 for float64 tensors."""
    return torch.promote_types(dtype, torch.float32)
