"""Shifted-short attention (LongLoRA's S2-Attn, arXiv 2309.12307): see `lm.model.shifted_groups` for its rule."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator
from torch import Tensor

from lm.model.documents import Documents, Visible
from lm.model.mixers.base import Dimensions
from lm.model.mixers.softmax import SoftmaxMixer, SoftmaxOptions
from lm.model.shifted_groups import halved_kv_heads, shifted_visible


class ShiftedShortOptions(SoftmaxOptions):
    """Attention inside groups while training; full attention in evaluation and decoding."""

    kind: Literal["shifted_short"] = "shifted_short"
    group_size: int = Field(ge=2, description="Tokens per group G; even, as half the heads shift by G/2.")

    @field_validator("group_size")
    @classmethod
    def _even(cls, group_size: int) -> int:
        if group_size % 2:
            raise ValueError("must be even: half the heads shift by half a group")
        return group_size

    def check(self, dimensions: Dimensions) -> None:
        if dimensions.num_attention_heads < 2:
            raise ValueError("shifted_short needs num_attention_heads of at least 2: one half of the heads shifts")

    @property
    def extent(self) -> str:
        return f"group {self.group_size}"


class ShiftedShort(SoftmaxMixer[ShiftedShortOptions]):
    """Attention within shifted and unshifted groups in training mode, causal attention in evaluation mode."""

    options_class = ShiftedShortOptions

    def visible(self, documents: Documents) -> Visible:
        if not self.training:
            return super().visible(documents)
        return shifted_visible(documents, self.options.group_size, self.kv_heads)

    @property
    def kv_heads(self) -> int:
        kv_heads = self.dimensions.num_key_value_heads
        return halved_kv_heads(kv_heads, self.dimensions.num_attention_heads) if self.training else kv_heads

    def mix(self, q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
        if (repeat := self.kv_heads // k.shape[1]) > 1:
            k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        return super().mix(q, k, v, documents)
