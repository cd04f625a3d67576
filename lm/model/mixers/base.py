"""What every token mixer is: options it declares, keys it sees, a forward, and a cache for decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lm.model.cache import MixerCache
from lm.model.documents import Documents, Visible
from lm.model.kernel_calls import Call, attention_call
from lm.options import Options


@dataclass(frozen=True)
class Dimensions:
    """The widths a mixer shares with the rest of its model; the names are Hugging Face's."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float


class MixerOptions(Options):
    """Options of one named mixer in a run file; each subclass fixes its `kind`."""

    kind: str
    short_conv: int | None = Field(
        None, ge=2, description="Width in tokens of a causal convolution per channel before the mixer; none: without."
    )

    def check(self, dimensions: Dimensions) -> None:
        """Raises ValueError, naming the key to change, where these options cannot work in such a model."""

    def attention_call(self, dimensions: Dimensions, dtype: torch.dtype, device: torch.device) -> Call | None:
        """A call of the attention kernel like those of training (`lm.model.kernel_calls`); None: it makes none."""
        heads, kv_heads = dimensions.num_attention_heads, dimensions.num_key_value_heads
        return attention_call(heads, kv_heads, dimensions.head_dim, dtype, device)

    def scan_call(self, dimensions: Dimensions, dtype: torch.dtype, device: torch.device) -> Call | None:
        """The same of the gated scan."""
        return None

    @property
    def extent(self) -> str:
        """How far the mixer looks: a window, a chunk, a group."""
        return "all"

    @property
    def sees(self) -> str:
        """How far one layer looks, for the plan: the mixer's extent and the convolution before it."""
        return self.extent if self.short_conv is None else f"{self.extent}, conv {self.short_conv}"


OptionsT = TypeVar("OptionsT", bound=MixerOptions)


class Mixer(nn.Module, ABC, Generic[OptionsT]):
    """Mixes tokens of a flat stream within their documents.

    A subclass states its intervals (`visible`), its forward, and what its cache keeps. FLOPs, reach and the
    bytes of the cache follow from these, so the plan cannot disagree with the model.
    """

    options_class: ClassVar[type[MixerOptions]]
    over_tokens: ClassVar[bool] = False
    """Whether queries meet keys and values of single tokens, as in any softmax attention: weights can be exchanged."""

    def __init__(self, options: OptionsT, dimensions: Dimensions) -> None:
        super().__init__()
        self.options = options
        self.dimensions = dimensions

    @abstractmethod
    def forward(self, x: Tensor, documents: Documents, cache: MixerCache | None = None) -> Tensor:
        """Mixes x [N, hidden_size] and returns the same shape. A cache is read, then extended in place."""

    @abstractmethod
    def visible(self, documents: Documents) -> Visible:
        """The keys each query sees, in the mode (training or not) the module is in."""

    @abstractmethod
    def new_cache(self, rows: int, dtype: torch.dtype, device: torch.device) -> MixerCache:
        """An empty cache for `rows` documents."""

    @property
    @abstractmethod
    def croppable(self) -> bool:
        """Whether a cache can always be cut back to any shorter length."""

    @abstractmethod
    def crop(self, cache: MixerCache, before: Tensor, after: Tensor) -> None:
        """Cuts every row from `before` [rows] tokens back to `after` [rows]; raises ValueError if it cannot."""

    @abstractmethod
    def cache_bytes(self, length: int, dtype: torch.dtype) -> int:
        """Bytes of one row's entries and states after `length` tokens, allocated slack left out."""

    @abstractmethod
    def earliest(self, documents: Documents, below: Tensor) -> Tensor:
        """The earliest token of the stream [N] that can influence each output.

        below: [N] int64, the same for this layer's inputs; both never decrease within a document.
        """

    def scores(self, documents: Documents) -> Tensor:
        """[N] int64: query-key pairs that each token scores over all heads: 4 x head_dim FLOPs (scores and values)."""
        visible = self.visible(documents)
        queries_per_key = self.dimensions.num_attention_heads // sum(visible.kv_heads)
        seen = (visible.end - visible.first.clamp(min=0)).clamp(min=0)
        heads = torch.tensor(visible.kv_heads, device=seen.device)
        return queries_per_key * (heads[:, None] * seen).sum(dim=0)

    def scored_pairs(self, documents: Documents) -> int:
        """Query-key pairs scored over all heads and tokens."""
        return int(self.scores(documents).sum())

    @abstractmethod
    def head_values(self, ranks: int) -> tuple[int, int] | None:
        """Numbers per token that go to other heads' ranks together, and that come back; None where heads do not divide.

        For streams that several ranks hold together; see `lm.model.shares`.
        """

    @abstractmethod
    def neighbour_bytes(self, stream: Documents, bounds: Sequence[int], dtype: torch.dtype) -> list[int]:
        """Bytes that each rank asks of those before it where rank r holds tokens bounds[r] to bounds[r + 1]."""

    def init_weights(self, std: float) -> None:
        """Draws every weight from N(0, std) and sets biases to 0; a mixer with other needs extends this."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
