"""The definition of interval attention: a dense mask and plain operations, in any floating-point type."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.interval_attention.intervals import Intervals
from kernels.precision import at_least_float32


def visible(intervals: Intervals, num_keys: int) -> Tensor:
    """[G, N, M] bool: whether query n of key/value head g sees key m."""
    key = torch.arange(num_keys, device=intervals.end.device)
    groups = (key >= intervals.start[..., None]) & (key < intervals.end[:, None])
    return groups.repeat_interleave(torch.tensor(intervals.kv_heads, device=groups.device), dim=0)


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Intervals,
    scale: float,
    extra_score: Tensor | None,
    extra_value: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Same shapes and result as `interval_attention`; needs memory for N x M scores."""
    repeats = q.shape[1] // k.shape[1]
    wide = at_least_float32(q.dtype)
    queries, keys, values = (x.to(wide).transpose(0, 1) for x in (q, k, v))
    keys, values = keys.repeat_interleave(repeats, 0), values.repeat_interleave(repeats, 0)
    hidden = ~visible(intervals, k.shape[0]).repeat_interleave(repeats, 0)
    scores = (queries @ keys.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf)  # [H, N, M]
    if extra_score is not None:
        scores = torch.cat([scores, extra_score.to(wide).t()[..., None]], dim=2)
    lse = scores.logsumexp(dim=2).detach()
    # Rows that see nothing must get probability 0 everywhere, not exp(-inf + inf).
    empty = lse == -torch.inf
    weights = scores.masked_fill(empty[..., None], 0.0).softmax(dim=2).masked_fill(empty[..., None], 0.0)
    out = weights[..., : k.shape[0]] @ values
    if extra_value is not None:
        out = out + weights[..., -1:] * extra_value.to(wide).transpose(0, 1)
    return out.transpose(0, 1).to(q.dtype), lse.t()
