"""Interval attention: every query attends to one contiguous interval of keys.

Global, sliding-window, shifted-short, long-short and chunk-final attention are all this one operation.
`reference` is the definition and `blocked` plain PyTorch on any device; `cpp` is for CPUs, where it is built, and
`triton`, `flash` and `flex` are for GPUs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.backends import Backend, Backends, in_module
from kernels.calls import Calls
from kernels.interval_attention.blocked import blocked_attention
from kernels.interval_attention.flash import FLASH
from kernels.interval_attention.flex import FLEX
from kernels.interval_attention.intervals import Intervals
from kernels.interval_attention.reference import reference_attention

__all__ = [
    "ENVIRONMENT",
    "Intervals",
    "attention_calls",
    "backends",
    "choose",
    "default",
    "interval_attention",
    "named",
    "prefer",
]

ENVIRONMENT = "BRAID_ATTENTION_BACKEND"
# On a GPU `triton` comes before `flash`: it serves every call, and gives the same bits each time.
_ATTENTION = Backends(
    "interval attention",
    ENVIRONMENT,
    {
        "reference": Backend(reference_attention),
        "blocked": Backend(blocked_attention),
        "cpp": in_module("kernels.interval_attention.cpp_attention"),
        "triton": in_module("kernels.interval_attention.triton_attention"),
        "flash": FLASH,
        "flex": FLEX,
    },
    {"cpu": ("cpp", "blocked"), "gpu": ("triton", "flash", "blocked")},
)
backends, default, prefer = _ATTENTION.reasons, _ATTENTION.default, _ATTENTION.prefer
choose, named = _ATTENTION.choose, _ATTENTION.named
attention_calls = Calls()
"""Shows (q, k, v, intervals, scale, extra_score, extra_value) of every call."""


def interval_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Intervals,
    *,
    scale: float | None = None,
    extra_score: Tensor | None = None,
    extra_value: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each query over the keys of its interval.

    q: [N, H, D]; k, v: [M, G, D], H a multiple of G; query head h uses key/value head h // (H // G).
    scale: multiplies the scores, default D**-0.5. extra_score [N, H], already scaled, and extra_value [N, H, D] are one
    more entry of each row's softmax; a score without a value stands for the value 0.
    backend: a name from `backends()`; None obeys the environment variable BRAID_ATTENTION_BACKEND, then
    `prefer`, and else takes the fastest that can serve the call.
    Returns (out [N, H, D] like q, lse [N, H] float32, float64 for float64): lse is the logsumexp of all the row's
    scores, the extra one included, and carries no gradient. A row that sees nothing has out 0, lse -inf, gradients 0.
    Raises ValueError for shapes that do not fit, and for a backend asked for that is unknown or cannot serve the call.
    """
    _check(q, k, v, intervals, extra_score, extra_value)
    call = (q, k, v, intervals, q.shape[-1] ** -0.5 if scale is None else scale, extra_score, extra_value)
    attention_calls(*call)
    out, lse = _ATTENTION.choose(backend, q.device.type, *call)(*call)
    return out, lse


def _check(
    q: Tensor, k: Tensor, v: Tensor, intervals: Intervals, extra_score: Tensor | None, extra_value: Tensor | None
) -> None:
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape or q.shape[2] != k.shape[2] or q.shape[1] % k.shape[1]:
        raise ValueError(
            "need q [N, H, D] and k, v [M, G, D] with H a multiple of G; "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if q.dtype != k.dtype or q.dtype != v.dtype or not torch.is_floating_point(q):
        raise ValueError(f"q, k and v must share one floating-point type; got {q.dtype}, {k.dtype}, {v.dtype}")
    if intervals.num_queries != q.shape[0] or sum(intervals.kv_heads) != k.shape[1]:
        raise ValueError(
            f"intervals are for {intervals.num_queries} queries and {sum(intervals.kv_heads)} key/value heads; "
            f"got {q.shape[0]} and {k.shape[1]}"
        )
    if intervals.last_key > k.shape[0]:
        raise ValueError(f"intervals reach key {intervals.last_key}, there are only {k.shape[0]} keys")
    if extra_score is not None and extra_score.shape != q.shape[:2]:
        raise ValueError(f"extra_score must be [N, H] = {tuple(q.shape[:2])}; got {tuple(extra_score.shape)}")
    if extra_value is not None and (extra_score is None or extra_value.shape != q.shape):
        raise ValueError(f"extra_value must be [N, H, D] = {tuple(q.shape)} and come with extra_score")
