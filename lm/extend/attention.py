"""Attention for Hugging Face models in training for a longer context: shifted groups, or full; full in evaluation.

Registered with transformers' attention and mask interfaces, so it serves every model that uses them, for any batch,
padding, packing by position_ids, and length; grouped queries need no repeated keys.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from kernels.interval_attention import interval_attention
from lm.extend.stand_in import stand_in
from lm.hf.rows import Rows, arrange, real_tokens, restarts
from lm.model.documents import Documents, Visible
from lm.model.mixers import SoftmaxMixer
from lm.model.shifted_groups import halved_kv_heads, shifted_visible


def set_attention(model: PreTrainedModel, group_size: int | None) -> IntervalAttention:
    """Makes `model` attend within shifted groups of `group_size` in training mode; None: always to everything.

    Returns what its layers call from now on.
    """
    name = "braid_full" if group_size is None else f"braid_shifted_short_{group_size}"
    attention = IntervalAttention(group_size, stand_in(model.config, group_size))
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, _two_dimensional_mask)
    model.set_attn_implementation(name)
    return attention


class IntervalAttention:
    """A function for transformers' AttentionInterface.

    called_by: the attention modules that have called it.
    """

    def __init__(self, group_size: int | None, on_shares: SoftmaxMixer[Any]) -> None:
        """on_shares: what attends in the layers' place where several ranks hold the stream."""
        self.group_size = group_size
        self._on_shares = on_shares
        self.called_by: WeakSet[nn.Module] = WeakSet()

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        documents: Documents | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Output [rows, columns, heads, head_dim] of query [rows, heads, columns, head_dim].

        key, value: [rows, kv_heads, cached + columns, head_dim]. attention_mask: 2-D, 0 at padding, cached columns
        included. documents: of one row without padding; if left out, they follow from the mask and from position_ids,
        which begin anew where a packed document does.
        """
        self.called_by.add(module)
        group_size = self.group_size if module.training else None
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        if documents is not None and documents.share is not None:
            self._on_shares.train(module.training)
            # It scales scores as most models do; the base may have a scale of its own.
            own_scale = 1.0 if scaling is None else scaling * q.shape[-1] ** 0.5
            return self._on_shares.mix(q[0] * own_scale, k[0], v[0], documents)[None], None
        if documents is not None:
            return attend(q[0], k[0], v[0], documents, group_size, scaling)[None], None
        rows, keys_real = _rows(query, key, attention_mask, position_ids)
        k, v = (x.flatten(0, 1) if keys_real is None else x[keys_real] for x in (k, v))
        return rows.restore(attend(rows.flatten(q), k, v, rows.documents, group_size, scaling)), None


def attend(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, group_size: int | None, scale: float | None = None
) -> Tensor:
    """Causal attention of q [N, heads, head_dim] within documents, or within their groups.

    k, v: [M, kv_heads, head_dim], each document's tokens with those before this stream.
    """
    kv_heads = k.shape[1]
    if group_size is not None:
        halved = halved_kv_heads(kv_heads, q.shape[1])
        if halved > kv_heads:
            k, v = (x.repeat_interleave(halved // kv_heads, dim=1) for x in (k, v))
            kv_heads = halved

    def visible() -> Visible:
        if group_size is not None:
            return shifted_visible(documents, group_size, kv_heads)
        return Visible(torch.zeros_like(documents.position)[None], documents.position + 1, (kv_heads,))

    intervals = documents.memo(
        ("interval attention", group_size, kv_heads), lambda: documents.intervals(visible(), documents.tokens())
    )
    return interval_attention(q, k, v, intervals, scale=scale)[0]


def _rows(
    query: Tensor, key: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
) -> tuple[Rows, Tensor | None]:
    """The documents of padded, packed or continued rows, and which keys [rows, cached + columns] are real."""
    shape, entries = (query.shape[0], query.shape[2]), key.shape[2]
    cached = entries - shape[1]
    if attention_mask is not None and attention_mask.shape != (shape[0], entries):
        raise ValueError(f"attention_mask must be {(shape[0], entries)} for as many keys; got {attention_mask.shape}")
    keys_real = real_tokens(attention_mask, entries)
    real = real_tokens(attention_mask, shape[1])
    if not cached:
        begins = restarts(position_ids, shape, real)
        return arrange(shape, real, begins, None, query.device), keys_real
    past = torch.full((shape[0],), cached, device=query.device)
    if keys_real is not None:
        past = keys_real[:, :cached].sum(1)
    return arrange(shape, real, None, past, query.device), keys_real


def _two_dimensional_mask(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Hands padding through. Without a mask function of its name, an attention function never hears of it."""
    return attention_mask
