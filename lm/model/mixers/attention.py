"""Softmax attention over tokens: global, or local when it has a window, to every token or to every n-th."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kernels.interval_attention.slots import Slots, attend_slots
from lm.model.cache import MixerCache
from lm.model.documents import Documents, residue_counts
from lm.model.mixers.softmax import HeadGroup, SoftmaxMixer, SoftmaxOptions


class AttentionOptions(SoftmaxOptions):
    """Global attention, or sliding-window attention where a window is given."""

    kind: Literal["attention"] = "attention"
    window: int | None = Field(None, ge=1, description="Keys each query sees, its own included; none means all.")
    dilation: int = Field(1, ge=1, description="Distance in tokens between neighbouring keys (DiNA).")

    @property
    def extent(self) -> str:
        if self.window is None:
            return "all" if self.dilation == 1 else f"every {self.dilation}"
        return f"window {self.window}" + (f" x {self.dilation}" if self.dilation > 1 else "")


class Attention(SoftmaxMixer[AttentionOptions]):
    """Causal attention to all tokens, to the last `window`, or to every `dilation`-th of them."""

    options_class = AttentionOptions

    def decode_groups(self) -> tuple[HeadGroup, ...]:
        return (HeadGroup(self.dimensions.num_key_value_heads, self.options.window),)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, documents: Documents, key_documents: Documents, kv_heads: range
    ) -> Tensor:
        if self.options.dilation == 1:
            return super().attend(q, k, v, documents, key_documents, kv_heads)
        order, neighbours = self._neighbours(documents)
        key_order, key_neighbours = self._neighbours(key_documents)
        out = super().attend(q[order], k[key_order], v[key_order], neighbours, key_neighbours, kv_heads)
        return out[order.argsort()]

    def extend(self, q: Tensor, k: Tensor, v: Tensor, documents: Documents, cache: MixerCache) -> Tensor:
        if self.options.dilation == 1:
            return super().extend(q, k, v, documents, cache)
        if documents.one_each:
            return self._step(q, k, v, documents, cache)
        order, neighbours = self._neighbours(documents)
        out = super().extend(q[order], k[order], v[order], neighbours, cache)
        return out[order.argsort()]

    def _step(self, q: Tensor, k: Tensor, v: Tensor, documents: Documents, cache: MixerCache) -> Tensor:
        """`extend` by one token per document, which sees one of the lists that the cache keeps of its document."""
        dilation, window, (buffer,) = self.options.dilation, self.options.window, cache.buffers
        part, entry = documents.position % dilation, documents.position // dilation
        lists = documents.memo(("lists", dilation), lambda: residue_counts(documents.total, dilation))
        buffer.write(k, v, documents.document * dilation + part, entry, lists)
        slots = documents.memo(
            ("slots", dilation, window), lambda: Slots(entry + 1 if window is None else (entry + 1).clamp(max=window))
        )
        keys, values = buffer.of_parts(part, slots.count)
        return attend_slots(q, keys, values, slots, extra_score=self.sink_score(q, range(self.kv_heads)))

    def new_cache(self, rows: int, dtype: torch.dtype, device: torch.device) -> MixerCache:
        cache = super().new_cache(rows * self.options.dilation, dtype, device)
        for buffer in cache.buffers:
            buffer.parts = self.options.dilation
        return cache

    def crop(self, cache: MixerCache, before: Tensor, after: Tensor) -> None:
        super().crop(cache, *(residue_counts(tokens, self.options.dilation) for tokens in (before, after)))

    def cache_bytes(self, length: int, dtype: torch.dtype) -> int:
        dilation = self.options.dilation
        residues = [len(range(residue, length, dilation)) for residue in range(dilation)]
        return sum(super(Attention, self).cache_bytes(tokens, dtype) for tokens in residues)

    def scores(self, documents: Documents) -> Tensor:
        order, neighbours = self._neighbours(documents)
        return torch.index_select(super().scores(neighbours), 0, order.argsort())

    def first_seen(self, documents: Documents, kv_heads: range) -> Tensor:
        position, dilation = documents.position, self.options.dilation
        steps = position // dilation
        if self.options.window is not None:
            steps = steps.clamp(max=self.options.window - 1)
        first: Tensor = torch.arange(len(position), device=position.device) - steps * dilation
        return first

    def _neighbours(self, documents: Documents) -> tuple[Tensor, Documents]:
        dilation = self.options.dilation
        return documents.memo(("dilated", dilation), lambda: documents.dilated(dilation))
