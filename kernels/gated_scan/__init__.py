"""The gated scan inside chunks: s[t] = a[t] s[t-1] + (1 - g[t]) x[t]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.gated_scan.chunks import Chunks
from kernels.gated_scan.scan import GatedScan

__all__ = ["Chunks", "gated_scan"]


def gated_scan(gate: Tensor, inputs: Sequence[Tensor], chunks: Chunks) -> tuple[Tensor, ...]:
    """Scans every input with the same gate, from a zero state before each chunk.

    gate and each input: [N, *C] floating point, any strides (expanded views too). a[t] is g[t], and 0 at a chunk's
    first token, where the factor (1 - g[t]) stays.
    Returns one [N, *C] state per input, float32 (float64 for float64); gradients for gate and inputs.
    Raises ValueError for shapes that do not fit.
    """
    for x in inputs:
        if x.shape != gate.shape or (x.dtype == torch.float64) != (gate.dtype == torch.float64):
            raise ValueError(
                f"inputs must be like the gate {tuple(gate.shape)} {gate.dtype}; got {tuple(x.shape)} {x.dtype}"
            )
    if not inputs or gate.dim() < 1 or gate.shape[0] != chunks.num_tokens or not torch.is_floating_point(gate):
        raise ValueError(
            f"need at least one input and a floating-point gate of {chunks.num_tokens} tokens, as the chunks have; "
            f"got {len(inputs)} inputs and a gate {tuple(gate.shape)} {gate.dtype}"
        )
    states: tuple[Tensor, ...] = GatedScan.apply(chunks, gate, *inputs)  # type: ignore[no-untyped-call]
    return states
