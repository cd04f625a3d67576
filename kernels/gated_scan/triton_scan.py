"""The `triton` backend of the gated scan: all inputs in one pass over memory, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.gated_scan import triton_kernels
from kernels.gated_scan.chunks import Chunks
from kernels.gated_scan.rows import repeating
from kernels.precision import at_least_float32
from kernels.triton_tuning import Tuned, config, refuses_device, triton_type, unavailable

__all__ = ["refuses", "run", "unavailable"]

Planes = tuple[Tensor | None, ...]
_CONFIGS = [config(warps, 2, BLOCK_C=channels) for warps, channels in ((1, 32), (1, 64), (2, 64), (2, 128), (4, 256))]
_scan, _ends, _starts, _carry, _scan_back = (
    Tuned(kernel, _CONFIGS, ("channels",), {"BLOCK_C": 16})
    for kernel in (
        triton_kernels.scan_kernel,
        triton_kernels.ends_kernel,
        triton_kernels.starts_kernel,
        triton_kernels.carry_kernel,
        triton_kernels.scan_back_kernel,
    )
)


def refuses(gate: Tensor, *_: Any) -> str | None:
    return refuses_device(gate.device)


def run(gate: Tensor, inputs: Sequence[Tensor], chunks: Chunks) -> tuple[Tensor, ...]:
    """Same shapes and result as `gated_scan`."""
    states: tuple[Tensor, ...] = _GatedScan.apply(chunks, gate, *inputs)  # type: ignore[no-untyped-call]
    return states


class _GatedScan(torch.autograd.Function):
    """apply(chunks, gate, *inputs) -> states, all [N, ...]."""

    @staticmethod
    def forward(ctx: Any, chunks: Chunks, gate: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        wide = at_least_float32(gate.dtype)
        states = tuple(torch.empty(x.shape, dtype=wide, device=x.device) for x in inputs)
        offsets, _, members = chunks.blocks
        rows, count, constants = _rows(gate, *inputs), len(inputs), _constants(states)
        channels, before, products = states[0][0].numel(), _nothing(count), None
        with torch.cuda.device_of(gate):
            if not chunks.whole:
                (products, *ends), before = _planes(chunks, states[0], 1 + count), _planes(chunks, states[0], count)
                _ends(_grid(offsets, channels), rows, tuple(ends), products, offsets, channels, **constants)
                _carry(
                    _grid(members, channels),
                    *(tuple(ends), products, before, members, channels),
                    BACKWARD=False,
                    **constants,
                )
            _scan(_grid(offsets, channels), rows, before, states, offsets, channels, **constants)
        ctx.chunks = chunks
        ctx.save_for_backward(gate, products, *inputs, *states)
        return states

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, products, *saved = ctx.saved_tensors
        chunks, count = ctx.chunks, len(grads)
        inputs, states = saved[:count], tuple(saved[count:])
        grads = tuple(grad.contiguous() for grad in grads)
        offsets, begins, members = chunks.blocks
        rows, constants = _rows(gate, *inputs), _constants(states)
        channels, after = states[0][0].numel(), _nothing(count)
        grad_gate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        grad_inputs = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs)
        with torch.cuda.device_of(gate):
            if not chunks.whole:
                starts, after = _planes(chunks, states[0], count), _planes(chunks, states[0], count)
                _starts(_grid(offsets, channels), rows[0], grads, starts, offsets, channels, **constants)
                _carry(
                    _grid(members, channels),
                    *(starts, products, after, members, channels),
                    BACKWARD=True,
                    **constants,
                )
            _scan_back(
                _grid(offsets, channels),
                *(rows, states, grads, after, grad_gate, grad_inputs, offsets, begins, channels),
                **constants,
            )
        return None, grad_gate, *grad_inputs


def _rows(*tensors: Tensor) -> tuple[tuple[Tensor, int, int], ...]:
    """Of each [N, *C]: a tensor, elements from row to row, and channels until a row repeats."""
    return tuple(repeating(x) for x in tensors)


def _nothing(count: int) -> Planes:
    return (None,) * count


def _planes(chunks: Chunks, like: Tensor, count: int) -> tuple[Tensor, ...]:
    shape = len(chunks.blocks[1]), like[0].numel()
    return tuple(torch.empty(shape, dtype=like.dtype, device=like.device) for _ in range(count))


def _constants(states: Sequence[Tensor]) -> dict[str, Any]:
    return {"COUNT": len(states), "TYPE": triton_type(states[0].dtype)}


def _grid(offsets: Tensor, channels: int) -> Any:
    return lambda blocks: (len(offsets) - 1, triton.cdiv(channels, blocks["BLOCK_C"]))
