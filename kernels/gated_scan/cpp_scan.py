"""The `cpp` backend of the gated scan: all inputs in one pass over memory each way (kernels/native/scan.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.gated_scan.chunks import Chunks
from kernels.gated_scan.rows import repeating
from kernels.native.library import function, unavailable
from kernels.native.tensors import VECTOR, refuses_tensors

__all__ = ["refuses", "run", "unavailable"]

MOST = 4


class _Rows(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("period", ctypes.c_int64))


class _Scan(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("chunks", "channels", "inputs", "threads")),
        ("offsets", ctypes.c_void_p),
        ("gate", _Rows),
        *((name, _Rows * MOST) for name in ("x", "state", "grad", "grad_x")),
        ("grad_gate", _Rows),
    )


def refuses(gate: Tensor, inputs: Sequence[Tensor], *_: Any) -> str | None:
    if len(inputs) > MOST:
        return f"it takes up to {MOST} inputs; there are {len(inputs)}"
    if gate[0].numel() % VECTOR or any(repeating(x)[2] % VECTOR for x in inputs):
        return f"channels must come in multiples of {VECTOR}"
    return refuses_tensors(gate, *inputs)


def run(gate: Tensor, inputs: Sequence[Tensor], chunks: Chunks) -> tuple[Tensor, ...]:
    """Same shapes and result as `gated_scan`."""
    states: tuple[Tensor, ...] = _Function.apply(chunks, gate, *inputs)  # type: ignore[no-untyped-call]
    return states


class _Function(torch.autograd.Function):
    """apply(chunks, gate, *inputs) -> states, all [N, ...]."""

    @staticmethod
    def forward(ctx: Any, chunks: Chunks, gate: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        gate = gate.contiguous()
        states = tuple(x.new_empty(x.shape) for x in inputs)
        rows = tuple(repeating(x) for x in inputs)
        call = _call(chunks, gate, rows, states)
        function("braid_scan_forward")(ctypes.byref(call))
        ctx.chunks = chunks
        ctx.save_for_backward(gate, *inputs, *states)
        return states

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, *saved = ctx.saved_tensors
        inputs, states = saved[: len(grads)], saved[len(grads) :]
        grads = tuple(grad.contiguous() for grad in grads)
        rows = tuple(repeating(x) for x in inputs)
        call = _call(ctx.chunks, gate, rows, states)
        grad_gate, grad_inputs = torch.empty_like(gate), tuple(x.new_empty(x.shape) for x in inputs)
        call.grad_gate = _rows(grad_gate)
        for i, (grad, grad_x) in enumerate(zip(grads, grad_inputs, strict=True)):
            call.grad[i], call.grad_x[i] = _rows(grad), _rows(grad_x)
        function("braid_scan_backward")(ctypes.byref(call))
        return None, grad_gate, *grad_inputs


def _call(chunks: Chunks, gate: Tensor, rows: Sequence[tuple[Tensor, int, int]], states: Sequence[Tensor]) -> _Scan:
    """Holds addresses alone: every tensor must outlive it."""
    offsets = chunks.offsets
    call = _Scan(len(offsets) - 1, gate[0].numel(), len(rows), torch.get_num_threads(), offsets.data_ptr(), _rows(gate))
    for i, ((x, row, period), state) in enumerate(zip(rows, states, strict=True)):
        call.x[i], call.state[i] = _Rows(x.data_ptr(), row, period), _rows(state)
    return call


def _rows(x: Tensor) -> _Rows:
    return _Rows(x.data_ptr(), x[0].numel(), x[0].numel())
