"""Calls of one token such as layers make of a kernel in training, to ask before a run whether it will serve them.

All return what the operation's backends are called with.
"""

from __future__ import annotations

from typing import Any

import torch

from kernels.gated_scan import Chunks
from kernels.interval_attention import Intervals
from kernels.precision import at_least_float32

Call = tuple[Any, ...]


def attention_call(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, own_entry: bool = False
) -> Call:
    """own_entry: with a further score in at least float32, and a value, for each query."""
    q, k = (torch.zeros(1, count, head_dim, dtype=dtype, device=device) for count in (heads, kv_heads))
    position = torch.zeros(1, dtype=torch.int64, device=device)
    entry = (q.new_zeros(1, heads, dtype=at_least_float32(dtype)), q) if own_entry else (None, None)
    return q, k, k, Intervals(position[None], position + 1, (kv_heads,)), 1.0, *entry


def scan_call(heads: int, groups: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> Call:
    """Values of all heads, and keys that each `groups`-th head shares."""
    value = torch.zeros(1, heads // groups, groups, head_dim, dtype=dtype, device=device)
    chunks = Chunks(torch.tensor([0, 1], device=device))
    return value.to(at_least_float32(dtype)), (value[:, :1].expand_as(value), value), chunks
