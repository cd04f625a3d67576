"""One stream on several ranks: how it is shared out, and whether a layer trades heads or looks at its neighbours.

Every rank of a sequence group holds a contiguous share of the flat stream, as even as it goes. What concerns a token
alone needs nobody. Where tokens meet, in mixers and short convolutions, a rank

- trades by heads (DeepSpeed-Ulysses): all tokens of some heads for some tokens of all heads, and back; or
- asks its neighbours: for the run of keys before its own that its queries see, which follows from their intervals, or
  for the state of a recurrence.

The first moves every token's heads, whatever they see, and gives every rank the same work. The second moves what is
seen: little where that is a window, a group or the ends of chunks, but ranks at the end of a document see more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kernels.exchange import Ranks, fetch, to_heads, to_tokens
from lm.model.documents import Documents, Share
from lm.model.mixers.base import Mixer
from lm.model.short_conv import ShortConvolution

Scheme = Literal["heads", "neighbours"]
MAX_EXCESS = 1 / 8
"""How much more than its share of a layer's FLOPs a rank may have to do so that neighbours are asked."""


class Exchange(NamedTuple):
    """How a layer exchanges, and the bytes that the rank which receives most receives in one forward."""

    scheme: Scheme
    received: int


def offers(mixer: Mixer[Any], lengths: Sequence[int], ranks: int, dtype: torch.dtype) -> dict[Scheme, Exchange]:
    """What each scheme that serves the mixer exchanges of a stream of documents on `ranks` ranks."""
    stream = Documents.from_lengths(lengths)
    bounds = even_bounds(stream.num_tokens, ranks)
    asked = max(mixer.neighbour_bytes(stream, bounds, dtype))
    found: dict[Scheme, Exchange] = {"neighbours": Exchange("neighbours", asked)}
    if (values := mixer.head_values(ranks)) is not None:
        there, back = (count // ranks for count in values)
        counts = [end - begin for begin, end in pairwise(bounds)]
        traded = max((stream.num_tokens - count) * there + count * (ranks - 1) * back for count in counts)
        found["heads"] = Exchange("heads", traded * dtype.itemsize)
    return found


def choose(mixer: Mixer[Any], lengths: Sequence[int], ranks: int, dtype: torch.dtype) -> Exchange:
    """The cheaper of `offers`.

    Neighbours are asked where that moves less and leaves no rank with more than `MAX_EXCESS` over its share of the
    mixer's FLOPs, and where heads do not divide.
    """
    found = offers(mixer, lengths, ranks, dtype)
    asked, traded = found["neighbours"], found.get("heads")
    if traded is None:
        return asked
    weights = sum(part.in_features * part.out_features for part in mixer.modules() if isinstance(part, nn.Linear))
    counts = [end - begin for begin, end in pairwise(even_bounds(sum(lengths), ranks))]
    scores = mixer.scores(Documents.from_lengths(lengths)).split(counts)
    work = [2 * weights * len(part) + 4 * mixer.dimensions.head_dim * int(part.sum()) for part in scores]
    even = max(work) <= (1 + MAX_EXCESS) * sum(work) / ranks
    return asked if even and asked.received < traded.received else traded


def layer_exchange(
    mixer: Mixer[Any], convolution: ShortConvolution | None, lengths: Sequence[int], ranks: int, dtype: torch.dtype
) -> Exchange:
    """What a layer exchanges of a stream of documents, the convolution before its mixer included."""
    chosen = choose(mixer, lengths, ranks, dtype)
    if convolution is None:
        return chosen
    asked = convolution.neighbour_bytes(Documents.from_lengths(lengths), even_bounds(sum(lengths), ranks), dtype)
    return chosen._replace(received=chosen.received + max(asked))


def even_bounds(tokens: int, ranks: int) -> tuple[int, ...]:
    """Rank r holds tokens bounds[r] to bounds[r + 1]: contiguous, and none has more than one more than another."""
    return tuple(tokens * rank // ranks for rank in range(ranks + 1))


@dataclass(frozen=True, eq=False)
class SequenceGroup:
    """The ranks that hold one stream together.

    lengths: of the documents of a typical stream, for which exchanges are chosen. dtype: of activations. scheme: taken
    by every layer, where heads divide, instead of the cheaper one.
    """

    ranks: Ranks
    lengths: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    scheme: Scheme | None = None
    _chosen: dict[Any, Scheme] = field(default_factory=dict, repr=False)

    def by_heads(self, mixer: Mixer[Any]) -> bool:
        """Whether a mixer trades by heads: the same for all batches, so that a run does what its plan says."""
        key = (type(mixer), mixer.options, mixer.dimensions, mixer.training)
        if key not in self._chosen:
            forced = self.scheme if mixer.head_values(self.ranks.size) is not None else "neighbours"
            self._chosen[key] = forced or choose(mixer, self.lengths, self.ranks.size, self.dtype).scheme
        return self._chosen[key] == "heads"

    def part(self, tokens: int) -> slice:
        """Which of a stream's tokens this rank holds."""
        return slice(*even_bounds(tokens, self.ranks.size)[self.ranks.rank :][:2])

    def share(self, stream: Documents) -> Documents:
        """This rank's documents of a stream that is the same on all ranks. Raises ValueError where a rank gets none."""
        if stream.num_tokens < self.ranks.size:
            raise ValueError(f"{stream.num_tokens} tokens cannot be shared out to {self.ranks.size} ranks")
        part = self.part(stream.num_tokens)
        begin, end = part.start, part.stop
        starts, ends = stream.cu_seqlens[:-1], stream.cu_seqlens[1:]
        lengths = ends.clamp(max=end) - starts.clamp(min=begin)
        here = lengths > 0
        past = (begin - starts).clamp(min=0)
        share = TokenShare(self, stream, even_bounds(stream.num_tokens, self.ranks.size), stream.lengths[here])
        local = Documents.from_lengths(lengths[here], past[here])
        return Documents(local.lengths, local.past, local.document, local.position, share)


@dataclass(frozen=True, eq=False)
class TokenShare(Share):
    """See `Share`."""

    group: SequenceGroup
    stream: Documents
    bounds: tuple[int, ...]
    whole: Tensor

    def by_heads(self, mixer: Mixer[Any]) -> bool:
        return self.group.by_heads(mixer)

    def heads(self, heads: int) -> range:
        return range(self.group.ranks.rank, heads, self.group.ranks.size)

    def to_heads(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return to_heads(tensors, self.bounds, self.group.ranks)

    def to_tokens(self, x: Tensor) -> Tensor:
        return to_tokens(x, self.bounds, self.group.ranks)

    def fetch(self, tensors: Sequence[Tensor], first: Sequence[int], owned: Sequence[int]) -> tuple[Tensor, ...]:
        return fetch(tensors, owned, first, self.group.ranks)
