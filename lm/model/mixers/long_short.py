"""Long-short attention (LS-attention, arXiv 2505.15548): some heads see a short window, the others everything.

It is ordinary attention with one mask per head; the paper's later version has one long head and eleven short ones
of span 100.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lm.model.mixers.base import Dimensions
from lm.model.mixers.softmax import HeadGroup, SoftmaxMixer, SoftmaxOptions


class LongShortOptions(SoftmaxOptions):
    """The first `short_heads` query heads see `window` tokens, the remaining ones the whole prefix."""

    kind: Literal["long_short"] = "long_short"
    short_heads: int = Field(ge=0, description="Query heads with the short window; the others are long.")
    window: int = Field(ge=1, description="Keys a short head sees, the query's own included.")

    def check(self, dimensions: Dimensions) -> None:
        group_size = dimensions.num_attention_heads // dimensions.num_key_value_heads
        if self.short_heads > dimensions.num_attention_heads:
            raise ValueError(
                f"short_heads {self.short_heads} exceeds num_attention_heads {dimensions.num_attention_heads}"
            )
        if self.short_heads % group_size:
            raise ValueError(
                f"short_heads {self.short_heads} must be a multiple of {group_size}, the query heads that share "
                "one key/value head (num_attention_heads / num_key_value_heads)"
            )

    @property
    def extent(self) -> str:
        return f"window {self.window} in {self.short_heads} heads"


class LongShort(SoftmaxMixer[LongShortOptions]):
    """Attention whose first heads are local and whose other heads are global."""

    options_class = LongShortOptions

    def decode_groups(self) -> tuple[HeadGroup, ...]:
        group_size = self.dimensions.num_attention_heads // self.dimensions.num_key_value_heads
        short = self.options.short_heads // group_size
        groups = (
            HeadGroup(short, self.options.window),
            HeadGroup(self.dimensions.num_key_value_heads - short, None),
        )
        return tuple(group for group in groups if group.kv_heads)
