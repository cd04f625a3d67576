"""What mixers with softmax attention over tokens share.

One forward serves every mixer whose keys are the tokens themselves; such a mixer only states what each head group
keeps for decoding, and where training differs, which interval each head group sees there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kernels.interval_attention import interval_attention
from kernels.interval_attention.slots import Slots, attend_slots
from kernels.precision import at_least_float32
from lm.model.cache import KeyValues, MixerCache
from lm.model.documents import Documents, KeyList, Visible
from lm.model.mixers.base import Dimensions, Mixer, MixerOptions, OptionsT
from lm.model.rope import RopeScaling, rotate, shared_table


class SoftmaxOptions(MixerOptions):
    """What all mixers over tokens share."""

    rope_theta: float | None = Field(None, gt=0, description="Base of the rotary angles; none takes the model's.")
    rope_scaling: RopeScaling | None = Field(None, description="Stretches the rotary angles to a longer context.")
    positions: Literal["rope", "none"] = Field("rope", description="Rotary positions, or none at all (NoPE).")
    qkv_bias: bool = Field(False, description="Biases on the query, key and value projections (Qwen 2).")
    qk_norm: bool = Field(False, description="RMSNorm on every query and key head before rotation.")
    sink: bool = Field(False, description="A learned logit per head that takes weight and gives no value.")


@dataclass(frozen=True)
class HeadGroup:
    """Neighbouring key/value heads that keep the last `window` tokens for decoding, or all."""

    kv_heads: int
    window: int | None

    def first(self, position: Tensor) -> Tensor:
        """The first token that a query at each position sees; with a window it may lie before the document."""
        return torch.zeros_like(position) if self.window is None else position - self.window + 1


class SoftmaxMixer(Mixer[OptionsT]):
    """Attention of queries to an interval of tokens per head group; grouped-query where the model is."""

    over_tokens = True
    options: Any

    def __init__(self, options: OptionsT, dimensions: Dimensions) -> None:
        super().__init__(options, dimensions)
        heads, kv_heads, head_dim = (
            dimensions.num_attention_heads,
            dimensions.num_key_value_heads,
            dimensions.head_dim,
        )
        self.q_proj = nn.Linear(dimensions.hidden_size, heads * head_dim, bias=self.options.qkv_bias)
        self.k_proj = nn.Linear(dimensions.hidden_size, kv_heads * head_dim, bias=self.options.qkv_bias)
        self.v_proj = nn.Linear(dimensions.hidden_size, kv_heads * head_dim, bias=self.options.qkv_bias)
        self.o_proj = nn.Linear(heads * head_dim, dimensions.hidden_size, bias=False)
        if self.options.qk_norm:
            self.q_norm = nn.RMSNorm(head_dim, eps=dimensions.rms_norm_eps)
            self.k_norm = nn.RMSNorm(head_dim, eps=dimensions.rms_norm_eps)
        self.sink = Sink(heads) if self.options.sink else None

    def decode_groups(self) -> tuple[HeadGroup, ...]:
        """What each head group keeps for decoding, in the order of the heads."""
        return (HeadGroup(self.dimensions.num_key_value_heads, None),)

    def visible(self, documents: Documents) -> Visible:
        position, groups = documents.position, self.decode_groups()
        first = torch.stack([group.first(position) for group in groups])
        return Visible(first, position + 1, tuple(group.kv_heads for group in groups))

    def forward(self, x: Tensor, documents: Documents, cache: MixerCache | None = None) -> Tensor:
        q, k, v = self.project(x, documents)
        out = self.mix(q, k, v, documents) if cache is None else self.extend(q, k, v, documents, cache)
        mixed: Tensor = self.o_proj(out.flatten(1))
        return mixed

    def project(self, x: Tensor, documents: Documents) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, heads, head_dim], keys and values [N, kv_heads, head_dim], normed and rotated."""
        q, k, v = (
            projection(x).unflatten(1, (-1, self.dimensions.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.options.qk_norm:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)  # autocast may norm in float32
        if self.options.positions == "rope":
            theta = self.options.rope_theta or self.dimensions.rope_theta
            dtype = at_least_float32(x.dtype)
            table = shared_table(documents, self.dimensions.head_dim, theta, dtype, self.options.rope_scaling)
            q, k = rotate(q, table), rotate(k, table)
        return q, k, v

    @property
    def kv_heads(self) -> int:
        """Key/value heads that attention within a stream uses."""
        return self.dimensions.num_key_value_heads

    def mix(self, q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
        """Attention within the stream: no token came before it, unless other ranks hold it."""
        share = documents.share
        if share is None:
            return self.attend(q, k, v, documents, documents, range(self.kv_heads))
        if share.by_heads(self):
            q, k, v = share.to_heads(q.unflatten(1, (self.kv_heads, -1)).flatten(2), k, v)
            q = q.unflatten(2, (-1, k.shape[2])).flatten(1, 2)
            out = self.attend(q, k, v, share.stream, share.stream, share.heads(self.kv_heads))
            out = share.to_tokens(out.unflatten(1, (k.shape[1], -1)).flatten(2))
            return torch.unflatten(out, 2, (-1, k.shape[2])).flatten(1, 2)
        outputs, q_per_kv = [], q.shape[1] // self.kv_heads
        for heads in self.visible(documents).groups:
            own = slice(heads.start, heads.stop)
            first = self.first_tokens(share.stream, heads, share.bounds)
            keys, values = share.fetch((k[:, own], v[:, own]), first, share.bounds)
            queries = q[:, own.start * q_per_kv : own.stop * q_per_kv]
            before = documents.preceded(len(keys) - len(queries))
            outputs.append(self.attend(queries, keys, values, documents, before, heads))
        return torch.cat(outputs, dim=1)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, documents: Documents, key_documents: Documents, kv_heads: range
    ) -> Tensor:
        """What the queries of some key/value heads, and their keys and values, give: all [n, heads, head_dim].

        key_documents: those of the keys, which may begin earlier than the queries' and end with them.
        """
        intervals = documents.memo(
            (self.options, self.dimensions, self.training, kv_heads),
            lambda: documents.intervals(
                self.visible(documents).of_heads(kv_heads),
                KeyList(key_documents.past, documents.past, documents.total),
            ),
        )
        return interval_attention(q, k, v, intervals, extra_score=self.sink_score(q, kv_heads))[0]

    def first_tokens(self, stream: Documents, kv_heads: range, bounds: Sequence[int]) -> list[int]:
        """For each rank, which holds tokens bounds[r] to bounds[r + 1], the first token that these heads see."""

        def build() -> list[int]:
            seen = self.first_seen(stream, kv_heads).split([end - begin for begin, end in pairwise(bounds)])
            return [int(part.min()) for part in seen]

        return stream.memo((self.options, self.dimensions, self.training, kv_heads, "first tokens"), build)

    def first_seen(self, documents: Documents, kv_heads: range) -> Tensor:
        """[N] int64: the first token of a stream without a past that each query of these heads sees."""
        visible = self.visible(documents).of_heads(kv_heads)
        return documents.intervals(visible, documents.tokens()).start.amin(dim=0)

    def head_values(self, ranks: int) -> tuple[int, int] | None:
        if self.kv_heads % ranks:
            return None
        heads, width = self.dimensions.num_attention_heads, self.dimensions.head_dim
        return (heads + 2 * self.kv_heads) * width, heads * width

    def neighbour_bytes(self, stream: Documents, bounds: Sequence[int], dtype: torch.dtype) -> list[int]:
        asked = [0] * (len(bounds) - 1)
        for heads in self.visible(stream).groups:
            size = 2 * len(heads) * self.dimensions.head_dim * dtype.itemsize
            for rank, first in enumerate(self.first_tokens(stream, heads, bounds)):
                asked[rank] += size * (bounds[rank] - first)
        return asked

    def extend(self, q: Tensor, k: Tensor, v: Tensor, documents: Documents, cache: MixerCache) -> Tensor:
        """Attention to the cached tokens and the stream's own, which the cache then holds too."""
        groups = self.decode_groups()
        group_size = self.dimensions.num_attention_heads // self.dimensions.num_key_value_heads
        kv_sizes = [group.kv_heads for group in groups]
        q_sizes = [heads * group_size for heads in kv_sizes]
        score = self.sink_score(q, range(self.dimensions.num_key_value_heads))
        scores = [None] * len(groups) if score is None else score.split(q_sizes, dim=1)
        pieces = zip(q.split(q_sizes, 1), k.split(kv_sizes, 1), v.split(kv_sizes, 1), scores, strict=True)
        outputs = []
        for (q_, k_, v_, score_), group, buffer in zip(pieces, groups, cache.buffers, strict=True):
            outputs.append(self._extend_group(q_, k_, v_, score_, group, documents, buffer))
        return torch.cat(outputs, dim=1)

    def _extend_group(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sink_score: Tensor | None,
        group: HeadGroup,
        documents: Documents,
        buffer: KeyValues,
    ) -> Tensor:
        if documents.one_each:
            buffer.write(k, v, documents.document, documents.position, documents.total)
            total, window = documents.total, group.window
            slots = documents.memo(
                ("slots", window), lambda: Slots(total if window is None else total.clamp(max=window))
            )
            return attend_slots(q, buffer.keys, buffer.values, slots, extra_score=sink_score)
        keys = documents.tokens(None if group.window is None else group.window - 1)
        k_cached, v_cached = buffer.read(keys.first, documents.past)
        k_all, v_all = keys.join(k_cached, k), keys.join(v_cached, v)
        position = documents.position
        visible = Visible(group.first(position)[None], position + 1, (group.kv_heads,))
        intervals = documents.intervals(visible, keys)
        buffer.write(k, v, documents.document, position, documents.total)
        return interval_attention(q, k_all, v_all, intervals, extra_score=sink_score)[0]

    def sink_score(self, q: Tensor, kv_heads: range) -> Tensor | None:
        return None if self.sink is None else self.sink(len(q), kv_heads, q.shape[1] // len(kv_heads))

    def init_weights(self, std: float) -> None:
        """As for every mixer; a sink begins at the logit 0."""
        super().init_weights(std)
        if self.sink is not None:
            nn.init.zeros_(self.sink.logit)

    def new_cache(self, rows: int, dtype: torch.dtype, device: torch.device) -> MixerCache:
        return MixerCache(
            [
                KeyValues(rows, group.kv_heads, self.dimensions.head_dim, group.window, dtype, device)
                for group in self.decode_groups()
            ]
        )

    @property
    def croppable(self) -> bool:
        return all(group.window is None for group in self.decode_groups())

    def crop(self, cache: MixerCache, before: Tensor, after: Tensor) -> None:
        for buffer in cache.buffers:
            buffer.crop(before, after)

    def cache_bytes(self, length: int, dtype: torch.dtype) -> int:
        entries = sum(
            group.kv_heads * (length if group.window is None else min(length, group.window))
            for group in self.decode_groups()
        )
        return 2 * entries * self.dimensions.head_dim * dtype.itemsize

    def earliest(self, documents: Documents, below: Tensor) -> Tensor:
        return below[self.first_seen(documents, range(self.kv_heads))]


class Sink(nn.Module):
    """A learned logit per head (gpt-oss): it joins the softmax and takes weight away from every key."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(heads))

    def forward(self, queries: int, kv_heads: range, q_per_kv: int) -> Tensor:
        """[queries, len(kv_heads) x q_per_kv]: the logits of the query heads of some key/value heads."""
        chosen = self.logit.view(-1, q_per_kv)[kv_heads.start : kv_heads.stop : kv_heads.step]
        return chosen.flatten().expand(queries, -1)
