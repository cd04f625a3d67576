"""The definition of the gated scan: one token after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.gated_scan.chunks import Chunks
from kernels.precision import at_least_float32


def reference_scan(gate: Tensor, inputs: Sequence[Tensor], chunks: Chunks) -> tuple[Tensor, ...]:
    """Same shapes and result as `gated_scan`."""
    wide = at_least_float32(gate.dtype)
    first = set(chunks.offsets[:-1].tolist())
    gates = gate.to(wide)
    outputs = []
    for x in inputs:
        states: list[Tensor] = []
        for t, (g, value) in enumerate(zip(gates, x.to(wide), strict=True)):
            fresh = (1 - g) * value
            states.append(fresh if t in first else g * states[-1] + fresh)
        outputs.append(torch.stack(states))
    return tuple(outputs)
