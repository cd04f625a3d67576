"""One decoder layer: norm and mixer, a short convolution between them if asked, norm and MLP; two residual branches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.model.cache import MixerCache
from lm.model.documents import Documents
from lm.model.mixers import Mixer
from lm.model.short_conv import ShortConvolution

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
}


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202), GeGLU, or two matrices with an exact GELU between them."""

    def __init__(self, hidden_size: int, intermediate_size: int, kind: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[kind]
        self.gate_proj = None if kind == "gelu" else nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.up_proj(x)
        wide = self.activation(wide) if self.gate_proj is None else self.activation(self.gate_proj(x)) * wide
        out: Tensor = self.down_proj(wide)
        return out


class Block(nn.Module):
    """Pre-norm residual layer around a mixer and an MLP; with `output_norms` each branch ends in a norm, too."""

    def __init__(
        self,
        mixer: Mixer[Any],
        hidden_size: int,
        intermediate_size: int,
        mlp: str,
        eps: float,
        output_norms: bool = False,
    ) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(hidden_size, eps=eps)
        width = mixer.options.short_conv
        self.short_conv = None if width is None else ShortConvolution(hidden_size, width)
        self.mixer = mixer
        self.post_attention_layernorm = nn.RMSNorm(hidden_size, eps=eps)
        self.mlp = MLP(hidden_size, intermediate_size, mlp)
        self.mixer_output_layernorm = nn.RMSNorm(hidden_size, eps=eps) if output_norms else nn.Identity()
        self.mlp_output_layernorm = nn.RMSNorm(hidden_size, eps=eps) if output_norms else nn.Identity()

    def forward(self, x: Tensor, documents: Documents, cache: MixerCache | None = None) -> Tensor:
        if documents.share is None and not documents.num_tokens:
            return x  # columns of padding alone; a rank whose share is empty still takes part in exchanges
        return self.join(x, self.mix(self.input_layernorm(x), documents, cache))

    def mix(self, inputs: Tensor, documents: Documents, cache: MixerCache | None = None) -> Tensor:
        """What the mixer, and the convolution before it, make of normed inputs [N, hidden_size]."""
        if self.short_conv is not None:
            inputs = self.short_conv(inputs, documents, cache)
        mixed: Tensor = self.mixer(inputs, documents, cache)
        return mixed

    def join(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output, from its input and what `mix` made of it, both [N, hidden_size]."""
        x = x + self.mixer_output_layernorm(mixed)
        out: Tensor = x + self.mlp_output_layernorm(self.mlp(self.post_attention_layernorm(x)))
        return out

    def new_cache(self, rows: int, dtype: torch.dtype, device: torch.device) -> MixerCache:
        """An empty cache for `rows` documents."""
        cache = self.mixer.new_cache(rows, dtype, device)
        if self.short_conv is not None:
            self.short_conv.extend_cache(cache, rows, dtype, device)
        return cache

    def cache_bytes(self, length: int, dtype: torch.dtype) -> int:
        """Bytes of one row's entries and states after `length` tokens, allocated slack left out."""
        inputs = 0 if self.short_conv is None else self.short_conv.cache_bytes(dtype)
        return self.mixer.cache_bytes(length, dtype) + inputs

    @property
    def croppable(self) -> bool:
        """Whether a cache can always be cut back to any shorter length."""
        return self.short_conv is None and self.mixer.croppable

    def crop(self, cache: MixerCache, before: Tensor, after: Tensor) -> None:
        """Cuts every row from `before` [rows] tokens back to `after` [rows]; raises ValueError if it cannot."""
        if self.short_conv is not None and bool((after < before).any()):
            raise ValueError("a short convolution no longer holds what came before its last inputs")
        self.mixer.crop(cache, before, after)

    def earliest(self, documents: Documents, below: Tensor) -> Tensor:
        """The earliest token of the stream [N] that can influence each output, as `Mixer.earliest` has it."""
        if self.short_conv is not None:
            below = self.short_conv.earliest(documents, below)
        return self.mixer.earliest(documents, below)
