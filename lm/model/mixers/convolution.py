"""A gated causal convolution per channel: a layer that looks at its nearest tokens alone, and keeps next to nothing.

    y = o_proj(g_out * conv(g_in * v)),        g_in, g_out, v linear in x, [N, hidden_size] each,

as the convolution blocks of LFM2 (arXiv 2511.23404); conv adds its own input, so its weights start where nothing is
mixed. Beside layers that see far it is the cheapest layer there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lm.model.cache import MixerCache
from lm.model.documents import Documents, Visible
from lm.model.mixers.base import Dimensions, Mixer, MixerOptions
from lm.model.short_conv import ShortConvolution


class ConvolutionOptions(MixerOptions):
    """A gated causal convolution."""

    kind: Literal["convolution"] = "convolution"
    width: int = Field(4, ge=2, description="Tokens that each output sees, its own included.")

    def attention_call(self, *_: Any) -> None:
        return None

    @property
    def extent(self) -> str:
        return f"width {self.width}"


class Convolution(Mixer[ConvolutionOptions]):
    """Convolution mixer with 4 hidden_size^2 + width hidden_size parameters."""

    options_class = ConvolutionOptions

    def __init__(self, options: ConvolutionOptions, dimensions: Dimensions) -> None:
        super().__init__(options, dimensions)
        hidden = dimensions.hidden_size
        self.in_proj = nn.Linear(hidden, 3 * hidden, bias=False)
        self.convolution = ShortConvolution(hidden, options.width, state="convolution")
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def init_weights(self, std: float) -> None:
        super().init_weights(std)
        self.convolution.init_weights()

    def forward(self, x: Tensor, documents: Documents, cache: MixerCache | None = None) -> Tensor:
        gate_in, gate_out, values = self.in_proj(x).chunk(3, dim=-1)
        out: Tensor = self.o_proj(gate_out * self.convolution(gate_in * values, documents, cache))
        return out

    def visible(self, documents: Documents) -> Visible:
        position = documents.position
        return Visible((position - self.options.width + 1)[None], position + 1, (self.dimensions.num_attention_heads,))

    def scores(self, documents: Documents) -> Tensor:
        return torch.zeros_like(documents.position)  # nothing is scored; the plan counts convolutions by their weights

    def earliest(self, documents: Documents, below: Tensor) -> Tensor:
        return self.convolution.earliest(documents, below)

    def new_cache(self, rows: int, dtype: torch.dtype, device: torch.device) -> MixerCache:
        cache = MixerCache([], {})
        self.convolution.extend_cache(cache, rows, dtype, device)
        return cache

    def cache_bytes(self, length: int, dtype: torch.dtype) -> int:
        return self.convolution.cache_bytes(dtype)

    @property
    def croppable(self) -> bool:
        return False

    def crop(self, cache: MixerCache, before: Tensor, after: Tensor) -> None:
        if bool((after < before).any()):
            raise ValueError("a convolution no longer holds what came before its last inputs")

    def head_values(self, ranks: int) -> tuple[int, int] | None:
        return None  # it has no heads: ranks that share a stream always ask their neighbours

    def neighbour_bytes(self, stream: Documents, bounds: Sequence[int], dtype: torch.dtype) -> list[int]:
        return self.convolution.neighbour_bytes(stream, bounds, dtype)
