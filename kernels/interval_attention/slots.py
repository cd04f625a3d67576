"""Attention of a decoding step: one query per row over that row's cache, used from its first slot."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.precision import at_least_float32


@dataclass(frozen=True, eq=False)
class Slots:
    """How many slots of each row are in use: [B] int64, at least 1. One object serves all layers of a kind."""

    used: Tensor

    @cached_property
    def count(self) -> int:
        """The most slots that any row uses."""
        return int(self.used.max())

    @cached_property
    def visible(self) -> Tensor | None:
        """[B, 1, 1, count] bool, or None where all rows use as many."""
        if bool((self.used == self.count).all()):
            return None
        return torch.arange(self.count, device=self.used.device) < self.used[:, None, None, None]

    @cached_property
    def bias(self) -> Tensor | None:
        """`visible` as what is added to float32 scores."""
        if self.visible is None:
            return None
        return torch.zeros(self.visible.shape, device=self.used.device).masked_fill_(~self.visible, -torch.inf)


def attend_slots(q: Tensor, keys: Tensor, values: Tensor, slots: Slots, *, extra_score: Tensor | None = None) -> Tensor:
    """Softmax attention of each row's query over the slots in use.

    q: [B, H, D]. keys, values: [B, G, S, D], read in q's type; query head h uses key/value head h // (H // G).
    extra_score: [B, H], a further entry of the softmax whose value is 0. Returns [B, H, D] like q; softmax statistics
    are at least float32.
    """
    keys, values = (x[:, :, : slots.count].to(q.dtype) for x in (keys, values))
    grouped = q.view(len(q), keys.shape[1], -1, q.shape[2])  # queries that share keys: rows of one small matrix
    if extra_score is None:
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=slots.visible)
    elif q.device.type == "cpu" and not torch.is_grad_enabled():
        # One call that holds no scores: an entry whose value is 0 only shrinks what the others give.
        bias = None if slots.bias is None else slots.bias.to(q.dtype)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(grouped, keys, values, attn_mask=bias)
        out = out * torch.sigmoid(lse - extra_score.view(lse.shape))[..., None].to(out.dtype)
    else:
        scores = (grouped @ keys.transpose(2, 3)).to(at_least_float32(q.dtype)) * q.shape[2] ** -0.5
        if slots.visible is not None:
            scores = scores.masked_fill(~slots.visible, -torch.inf)
        extra = extra_score.view(*scores.shape[:3], 1).to(scores.dtype)
        weights = torch.cat((scores, extra), dim=3).softmax(dim=3)[..., :-1].to(values.dtype)
        out = weights @ values
    return out.reshape(q.shape)
