"""What all C++ kernels ask of the tensors that they are called with."""

from __future__ import annotations

import torch
from torch import Tensor

VECTOR = 16
"""Channels come in multiples of this many floats: the widest vectors that the kernels are compiled for."""


def refuses_tensors(*tensors: Tensor) -> str | None:
    """Why no kernel reads these tensors, None where they lie on the CPU in float32."""
    for x in tensors:
        if x.device.type != "cpu":
            return f"it runs on the CPU, the tensors are on {x.device.type}"
        if x.dtype != torch.float32:
            return f"it computes in float32, not {str(x.dtype).removeprefix('torch.')}"
    return None
