"""Attention of a decoding step: one query per row over that row's cache, used from its first slot."""

from __future__ import annotations

import torch
from torch import Tensor


def attend_slots(q: Tensor, keys: Tensor, values: Tensor, used: Tensor, *, extra_score: Tensor | None = None) -> Tensor:
    """Softmax attention of each row's query over its first `used` slots.

    q: [B, H, D]. keys, values: [B, G, S, D]; query head h uses key/value head h // (H // G). used: [B] int64, each
    1 to S. extra_score: [B, H], a further entry of the softmax whose value is 0. Returns [B, H, D] like q; softmax
    statistics are at least float32.
    """
    rows, heads, head_dim = q.shape
    grouped = q.view(rows, keys.shape[1], -1, head_dim)
    scores = (grouped @ keys.transpose(2, 3)).to(torch.promote_types(q.dtype, torch.float32)) * head_dim**-0.5
    slots = torch.arange(keys.shape[2], device=q.device)
    unused = slots >= used[:, None, None, None]
    scores = scores.masked_fill(unused, -torch.inf)
    if extra_score is not None:
        extra = extra_score.view(*scores.shape[:3], 1).to(scores.dtype)
        scores = torch.cat((scores, extra), dim=3)
    weights = scores.softmax(dim=3)[..., : keys.shape[2]].to(values.dtype)
    out: Tensor = (weights @ values).view(rows, heads, head_dim)
    return out
