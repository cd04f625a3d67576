"""A short causal convolution per channel: each token's input joined by a few before it, within its document."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kernels.precision import at_least_float32
from lm.model.cache import MixerCache
from lm.model.documents import Documents, Share


class ShortConvolution(nn.Module):
    """y_t = x_t + sum_{j < width} weight[j] * x_{t-j} in every channel, with x = 0 before the document begins.

    The tokens before a key join it, so that one layer of attention can find what followed a token; a Canon layer of
    arXiv 2512.17351 in front of the mixer. The input itself is added, so weights of zero, as a new one has and to which
    weight decay pulls, change nothing: a pretrained model that is given a convolution starts as it was.
    """

    def __init__(self, hidden_size: int, width: int, state: str = "short_conv") -> None:
        """width: tokens that each output sees, its own included. state: its name in the cache, its own in a layer."""
        super().__init__()
        self._state = state
        self.weight = nn.Parameter(torch.zeros(width, hidden_size))

    def init_weights(self) -> None:
        """For training from the start: uniform within +-width^(-1/2), as PyTorch's own convolutions."""
        bound = len(self.weight) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    @property
    def before(self) -> int:
        """Earlier tokens that an output sees; a cache keeps as many inputs of each row."""
        return len(self.weight) - 1

    def forward(self, x: Tensor, documents: Documents, cache: MixerCache | None = None) -> Tensor:
        """x [N, hidden_size] to the same shape and dtype, summed in at least float32. A cache is read, then updated."""
        before = self.before
        place, first, last = documents.memo(("short_conv", before), lambda: _layout(documents, before))
        given, filled = x, place
        if documents.share is not None:
            given, filled = self._with_neighbours(x, place, documents.share)
        # Each document behind as many inputs from before this stream: zeros, or what a cache or other ranks have.
        padded = x.new_zeros(len(place) + len(first), x.shape[1]).index_copy(0, filled, given)
        if cache is not None:
            padded = padded.index_copy(0, first, cache.states[self._state].flatten(0, 1).to(x.dtype))
            cache.states[self._state] = padded[last].view_as(cache.states[self._state])
        weight = self.weight.to(at_least_float32(x.dtype))
        mixed = padded[before:] * weight[0]
        for shift in range(1, before + 1):
            mixed = mixed + padded[before - shift : len(padded) - shift] * weight[shift]
        return x + mixed.index_select(0, place - before).to(x.dtype)

    def _with_neighbours(self, x: Tensor, place: Tensor, share: Share) -> tuple[Tensor, Tensor]:
        """The inputs behind those that the ranks before hold of the same document, and the place of each."""
        (given,) = share.fetch((x,), self.first_tokens(share.stream, share.bounds), share.bounds)
        before = torch.arange(self.before - (len(given) - len(x)), self.before, device=place.device)
        return given, torch.cat((before, place))

    def first_tokens(self, stream: Documents, bounds: Sequence[int]) -> list[int]:
        """For each rank, which holds tokens bounds[r] to bounds[r + 1] of a stream, the first that it sees."""
        index = torch.arange(stream.num_tokens, device=stream.position.device)
        return stream.memo(
            ("short_conv", self.before, "first tokens"),
            lambda: self.earliest(stream, index)[list(bounds[:-1])].tolist(),
        )

    def neighbour_bytes(self, stream: Documents, bounds: Sequence[int], dtype: torch.dtype) -> list[int]:
        """As `Mixer.neighbour_bytes`."""
        size = self.weight.shape[1] * dtype.itemsize
        asked = self.first_tokens(stream, bounds)
        return [size * (begin - first) for begin, first in zip(bounds, asked, strict=False)]

    def extend_cache(self, cache: MixerCache, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        """Gives an empty cache of `rows` documents the inputs before their first tokens."""
        cache.states[self._state] = torch.zeros(rows, self.before, self.weight.shape[1], dtype=dtype, device=device)

    def cache_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one row's inputs, after any number of tokens."""
        return self.before * self.weight.shape[1] * dtype.itemsize

    def earliest(self, documents: Documents, below: Tensor) -> Tensor:
        """The earliest token of a stream without a past that can influence each output, as `Mixer.earliest` has it."""
        index = torch.arange(documents.num_tokens, device=below.device)
        return below[index - documents.position.clamp(max=self.before)]


def _layout(documents: Documents, before: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices into the stream with `before` inputs ahead of each document: of the N tokens, of the D * before inputs
    ahead of the documents, and of each document's last `before` inputs."""
    steps = torch.arange(-before, 0, device=documents.lengths.device)
    end = torch.cumsum(documents.lengths + before, 0)
    place = torch.arange(documents.num_tokens, device=end.device) + (documents.document + 1) * before
    return place, ((end - documents.lengths)[:, None] + steps).flatten(), (end[:, None] + steps).flatten()
