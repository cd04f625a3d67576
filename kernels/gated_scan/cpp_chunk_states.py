"""`chunk_states` in C++ (kernels/native/chunk_states.cpp, whose structure is mirrored here field by field)."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.gated_scan.chunks import Chunks
from kernels.native.library import function, unavailable
from kernels.native.tensors import VECTOR, refuses_tensors

__all__ = ["refuses", "run", "unavailable"]

_OUT = ("score", "state", "final_keys", "final_values")
_IN = ("gate", "value", "query", "key")


class _States(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("chunks", "heads", "groups", "dim", "threads")),
        *((name, ctypes.c_void_p) for name in ("offsets", "final", *_IN, *_OUT)),
        *((f"grad_{name}", ctypes.c_void_p) for name in (*_OUT, *_IN)),
    )


def refuses(gate: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> str | None:
    if gate.shape[2] % VECTOR:
        return f"head_dim must be a multiple of {VECTOR}; it is {gate.shape[2]}"
    return refuses_tensors(gate, query, key, value)


def run(gate: Tensor, query: Tensor, key: Tensor, value: Tensor, chunks: Chunks, finals: Tensor) -> tuple[Tensor, ...]:
    """Same shapes and result as `chunk_states`."""
    found: tuple[Tensor, ...] = _Function.apply(gate, value, query, key, chunks, finals)  # type: ignore[no-untyped-call]
    return found


class _Function(torch.autograd.Function):
    """apply(gate, value, query, key, chunks, finals) -> (score, states of the values, final keys, final values)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, gate: Tensor, value: Tensor, query: Tensor, key: Tensor, chunks: Chunks, finals: Tensor
    ) -> tuple[Tensor, ...]:
        inputs = tuple(x.contiguous() for x in (gate, value, query, key))
        shape = (len(finals), *gate.shape[1:])
        outputs = tuple(gate.new_empty(of) for of in (gate.shape[:2], gate.shape, shape, shape))
        place = _places(chunks, finals)
        function("braid_chunk_states_forward")(ctypes.byref(_call(chunks, place, inputs, outputs)))
        ctx.chunks = chunks
        ctx.save_for_backward(place, *inputs, outputs[1])
        return outputs

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        place, *inputs, state = ctx.saved_tensors
        grads = tuple(grad.contiguous() for grad in grads)
        grad_inputs = tuple(torch.empty_like(x) for x in inputs)
        call = _call(ctx.chunks, place, inputs, (None, state, None, None))
        for name, x in zip((*_OUT, *_IN), (*grads, *grad_inputs), strict=True):
            setattr(call, f"grad_{name}", x.data_ptr())
        function("braid_chunk_states_backward")(ctypes.byref(call))
        return *grad_inputs, None, None


def _places(chunks: Chunks, finals: Tensor) -> Tensor:
    """[K] int64: which of the finals ends each chunk, -1 where none does."""
    place = torch.searchsorted(finals, chunks.offsets[1:] - 1)
    ends = torch.nn.functional.pad(finals, (0, 1), value=-1)[place] == chunks.offsets[1:] - 1
    return torch.where(ends, place, -1)


def _call(chunks: Chunks, place: Tensor, inputs: Any, outputs: Any) -> _States:
    """Holds addresses alone: every tensor must outlive it."""
    gate, _, query, _ = inputs
    _, heads, dim = gate.shape
    call = _States(len(chunks.offsets) - 1, heads, query.shape[1], dim, torch.get_num_threads())
    call.offsets, call.final = chunks.offsets.data_ptr(), place.data_ptr()
    for name, x in zip((*_IN, *_OUT), (*inputs, *outputs), strict=True):
        setattr(call, name, None if x is None else x.data_ptr())
    return call
