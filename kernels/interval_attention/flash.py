"""The `flash` backend: FlashAttention-2 (arXiv 2307.08691) as PyTorch ships it for GPUs, with varying lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from kernels.backends import Backend
from kernels.interval_attention.dense import Gradients
from kernels.interval_attention.flash_plan import VarlenCall, plan_calls
from kernels.interval_attention.intervals import Intervals
from kernels.interval_attention.joint import joint_attention

MAX_HEAD_DIM = 256
MAX_GRID = 65535  # heads, and sequences, of one call: two dimensions of the kernel's grid


class Varlen(Protocol):
    """Causal attention over sequences laid end to end, aligned at their ends.

    q, out and their gradients: [rows, H, D]; k, v: [keys, G, D], H a multiple of G; lse: [H, rows] float32, +inf where
    a row sees nothing. The backward takes the out and lse of whole rows, also where further keys took part in them.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, call: VarlenCall, scale: float) -> tuple[Tensor, Tensor]: ...

    @staticmethod
    def backward(
        grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, call: VarlenCall, scale: float
    ) -> Gradients: ...


class PyTorchVarlen:
    """PyTorch's own operator."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, call: VarlenCall, scale: float) -> tuple[Tensor, Tensor]:
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *(q, k, v, call.cu_rows, call.cu_keys, call.max_rows, call.max_keys, 0.0, call.window is None, False),
            **_window(call),
            scale=scale,
        )
        return out, lse

    @staticmethod
    def backward(
        grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, call: VarlenCall, scale: float
    ) -> Gradients:
        random_state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout, which there is none of
        grad_q, grad_k, grad_v = torch.ops.aten._flash_attention_backward(
            *(grad_out, q, k, v, out, lse, call.cu_rows, call.cu_keys, call.max_rows, call.max_keys),
            *(0.0, call.window is None, random_state, random_state.new_empty(0)),
            **_window(call),
            scale=scale,
        )
        return grad_q, grad_k, grad_v


def _window(call: VarlenCall) -> dict[str, int]:
    """Keys before and after the aligned one that a row sees; -1 is no limit."""
    return {"window_size_left": -1 if call.window is None else call.window - 1, "window_size_right": 0}


@cache
def _unavailable() -> str | None:
    """Why flash attention cannot run on this machine, None where it can."""
    if not torch.cuda.is_available():
        return "there is no GPU"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this PyTorch was built without flash attention"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None


def _refuses(q: Tensor, k: Tensor, v: Tensor, intervals: Intervals, *_: Any) -> str | None:
    if q.device.type != "cuda":
        return f"it runs on cuda, the tensors are on {q.device.type}"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"it serves bfloat16 and float16, not {str(q.dtype).removeprefix('torch.')}"
    if q.shape[2] % 8 or q.shape[2] > MAX_HEAD_DIM:
        return f"it serves a head_dim that is a multiple of 8 up to {MAX_HEAD_DIM}, not {q.shape[2]}"
    try:
        calls = _calls(intervals, len(k))
    except ValueError as error:
        return str(error)
    for call in calls:
        if call is not None and call.pack * q.shape[1] > MAX_GRID:
            return "too many queries see the same keys"
        if call is not None and len(call.cu_rows) - 1 > MAX_GRID:
            return f"the queries fall into {len(call.cu_rows) - 1} sequences, it takes {MAX_GRID}"
    return None


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Intervals,
    scale: float,
    extra_score: Tensor | None,
    extra_value: Tensor | None,
    varlen: type[Varlen] = PyTorchVarlen,
) -> tuple[Tensor, Tensor]:
    """Same shapes and result as `interval_attention`. varlen: what makes the calls."""
    return joint_attention(q, k, v, intervals, scale, extra_score, extra_value, _Flash(varlen))


def _calls(intervals: Intervals, num_keys: int) -> list[VarlenCall | None]:
    return intervals.memo(f"flash calls, {num_keys} keys", lambda: plan_calls(intervals, num_keys))


@dataclass(frozen=True)
class _Flash:
    """Attention over the listed keys, by one call for each group of heads."""

    varlen: type[Varlen]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, intervals: Intervals, scale: float) -> tuple[Tensor, Tensor]:
        out = torch.zeros_like(q)
        lse = torch.full(q.shape[:2], -torch.inf, dtype=torch.float32, device=q.device)
        for group in _groups(intervals, q, k):
            part, part_lse = self.varlen.forward(group.pack(q), group.take(k), group.take(v), group.call, scale)
            group.put(out, group.unpack(part))
            group.put(lse, group.unpack(part_lse.t()))
        return out, lse

    def backward(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        intervals: Intervals,
        scale: float,
    ) -> Gradients:
        grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q, k, v))
        for group in _groups(intervals, q, k):
            part_q, part_k, part_v = self._backward(
                group.pack(grad_out, once=True),
                *(group.pack(q), group.take(k), group.take(v), group.pack(out)),
                *(group.pack(lse).t().contiguous(), group.call, scale),
            )
            group.put(grad_q, group.unpack(part_q))
            group.give(grad_k, part_k)
            group.give(grad_v, part_v)
        return grad_q, grad_k, grad_v

    def _backward(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        call: VarlenCall,
        scale: float,
    ) -> Gradients:
        """As `Varlen.backward`, part by part: no two sequences share a row or a key."""
        if not call.parts:
            return self.varlen.backward(grad_out, q, k, v, out, lse, call, scale)
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for part in call.parts:
            rows, keys = part.rows, part.keys
            found = self.varlen.backward(
                *(grad_out[rows], q[rows], k[keys], v[keys], out[rows]),
                *(lse[:, rows].contiguous(), part.call, scale),
            )
            for grad, place, values in zip(grads, (rows, keys, keys), found, strict=True):
                grad[place] = values
        return grads


@dataclass(frozen=True)
class _Group:
    """A group of heads and its call: what goes into the call, and where its results belong."""

    call: VarlenCall
    heads: slice
    kv_heads: slice

    def pack(self, x: Tensor, once: bool = False) -> Tensor:
        """x [N, H, ...] -> [rows, heads of the call, ...]. once: places that only fill up a row hold zeros."""
        call, x = self.call, x[:, self.heads]
        if call.places is not None:
            x = x.index_select(0, call.places)
        if once and call.real is not None:
            x = x * call.real.view(-1, *[1] * (x.dim() - 1))
        if call.pack > 1:
            x = torch.unflatten(torch.unflatten(x, 1, (self._num_kv_heads, -1)), 0, (-1, call.pack))
            x = x.transpose(1, 2).flatten(1, 3)
        return x

    def unpack(self, x: Tensor) -> Tensor:
        """[rows, heads of the call, ...] -> [places that hold a query, heads, ...]."""
        call = self.call
        if call.pack > 1:
            x = torch.unflatten(x, 1, (self._num_kv_heads, call.pack, -1)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        return x if call.real is None else x[call.real]

    def put(self, target: Tensor, x: Tensor) -> None:
        """Stores what `unpack` gave in target [N, H, ...]."""
        call = self.call
        if call.places is None:
            target[:, self.heads] = x
        else:
            target[call.places[call.real], self.heads] = x

    def take(self, x: Tensor) -> Tensor:
        """k or v [M, G, D] -> [keys, heads, D]."""
        x = x[:, self.kv_heads]
        return x if self.call.keys is None else x.index_select(0, self.call.keys)

    def give(self, target: Tensor, x: Tensor) -> None:
        """Stores gradients [keys, heads, D] of what `take` gave in target [M, G, D]."""
        if self.call.keys is None:
            target[:, self.kv_heads] = x
        else:
            target[self.call.keys, self.kv_heads] = x

    @property
    def _num_kv_heads(self) -> int:
        count: int = self.kv_heads.stop - self.kv_heads.start
        return count


def _groups(intervals: Intervals, q: Tensor, k: Tensor) -> Iterator[_Group]:
    repeats, first = q.shape[1] // k.shape[1], 0
    for call, count in zip(_calls(intervals, len(k)), intervals.kv_heads, strict=True):
        if call is not None:
            kv_heads = slice(first, first + count)
            yield _Group(call, slice(first * repeats, (first + count) * repeats), kv_heads)
        first += count


FLASH = Backend(flash_attention, _unavailable, _refuses)
