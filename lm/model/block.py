"""One decoder layer: norm, mixer, norm, MLP, each on its own residual branch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lm.model.cache import MixerCache
from lm.model.documents import Documents
from lm.model.mixers import Mixer

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
        self.mixer = mixer
        self.post_attention_layernorm = nn.RMSNorm(hidden_size, eps=eps)
        self.mlp = MLP(hidden_size, intermediate_size, mlp)
        self.mixer_output_layernorm = nn.RMSNorm(hidden_size, eps=eps) if output_norms else nn.Identity()
        self.mlp_output_layernorm = nn.RMSNorm(hidden_size, eps=eps) if output_norms else nn.Identity()

    def forward(self, x: Tensor, documents: Documents, cache: MixerCache | None = None) -> Tensor:
        x = x + self.mixer_output_layernorm(self.mixer(self.input_layernorm(x), documents, cache))
        out: Tensor = x + self.mlp_output_layernorm(self.mlp(self.post_attention_layernorm(x)))
        return out
