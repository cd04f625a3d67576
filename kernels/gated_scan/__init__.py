"""The gated scan inside chunks: s[t] = a[t] s[t-1] + (1 - g[t]) x[t]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.backends import Backend, Backends, in_module
from kernels.calls import Calls
from kernels.gated_scan.chunks import Chunks
from kernels.gated_scan.reference import reference_scan
from kernels.gated_scan.scan import loop_scan

__all__ = ["ENVIRONMENT", "Chunks", "backends", "choose", "default", "gated_scan", "named", "prefer", "scan_calls"]

ENVIRONMENT = "BRAID_SCAN_BACKEND"
_SCAN = Backends(
    "gated scan",
    ENVIRONMENT,
    {
        "reference": Backend(reference_scan),
        "loop": Backend(loop_scan),
        "cpp": in_module("kernels.gated_scan.cpp_scan"),
        "triton": in_module("kernels.gated_scan.triton_scan"),
    },
    {"cpu": ("cpp", "loop"), "gpu": ("triton", "loop")},
)
backends, default, prefer = _SCAN.reasons, _SCAN.default, _SCAN.prefer
choose, named = _SCAN.choose, _SCAN.named
scan_calls = Calls()
"""Shows (gate, inputs, chunks) of every call."""


def gated_scan(
    gate: Tensor, inputs: Sequence[Tensor], chunks: Chunks, *, backend: str | None = None
) -> tuple[Tensor, ...]:
    """Scans every input with the same gate, from a zero state before each chunk.

    gate and each input: [N, *C] floating point, any strides (expanded views too). a[t] is g[t], and 0 at a chunk's
    first token, where the factor (1 - g[t]) stays.
    backend: a name from `backends()`; None obeys the environment variable BRAID_SCAN_BACKEND, then `prefer`,
    and else takes the fastest.
    Returns one [N, *C] state per input, float32 (float64 for float64); gradients for gate and inputs.
    Raises ValueError for shapes that do not fit, and for a backend asked for that is unknown or cannot serve the call.
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
    scan_calls(gate, inputs, chunks)
    states: tuple[Tensor, ...] = _SCAN.choose(backend, gate.device.type, gate, inputs, chunks)(gate, inputs, chunks)
    return states
