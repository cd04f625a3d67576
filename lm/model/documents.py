"""Which document each token belongs to, and its place in it: the one truth all mixers count from.

Inside the model a batch is one flat stream of tokens without padding. Chunks, groups, windows and rotary
positions are counted from a document's first token, and every interval of visible keys is built here from
document-relative indices, so attention cannot leave its document.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from kernels.interval_attention import Intervals

T = TypeVar("T")


@dataclass(frozen=True)
class Visible:
    """What each query sees, in document-relative indices of a mixer's key list.

    first: [S, N] int64, first visible key per head group (may lie before the document's first key).
    end: [N] int64, one past the last visible key.
    kv_heads: key/value heads in each of the S head groups. parts_of: the groups that these were part of, see
    `Intervals`.
    """

    first: Tensor
    end: Tensor
    kv_heads: tuple[int, ...]
    parts_of: tuple[range, ...] = ()

    @property
    def groups(self) -> Iterator[range]:
        """The key/value heads of each group."""
        return (range(begin, end) for begin, end in pairwise(accumulate(self.kv_heads, initial=0)))

    def of_heads(self, kv_heads: range) -> Visible:
        """What the queries of some key/value heads see."""
        groups = tuple(self.groups)
        counts = [sum(head in kv_heads for head in group) for group in groups]
        present = [index for index, count in enumerate(counts) if count]
        parts_of = tuple(groups[index] for index in present) if len(groups) > 1 else ()
        return Visible(self.first[present], self.end, tuple(counts[index] for index in present), parts_of)


@dataclass(frozen=True)
class KeyList:
    """Where the keys of each document lie in a flat key list: keys `first[d] ... last[d] - 1` of document d.

    first, new, last: [D] int64, document-relative; keys before `new` come from a cache, the others are this stream's.
    """

    first: Tensor
    new: Tensor
    last: Tensor

    @property
    def offset(self) -> Tensor:
        """[D] int64: document-relative key j of document d lies at flat index `offset[d] + j`."""
        return torch.cumsum(self.last - self.first, 0) - self.last

    def join(self, cached: Tensor, stream: Tensor) -> Tensor:
        """The flat list in the stream's type, from cached entries of all documents and those of the stream [n, ...]."""
        if not len(cached):
            return stream
        documents = torch.arange(len(self.last), device=self.last.device)
        owner = torch.cat(
            (documents.repeat_interleave(self.new - self.first), documents.repeat_interleave(self.last - self.new))
        )
        return torch.cat((cached.to(stream.dtype), stream)).index_select(0, torch.argsort(owner, stable=True))


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents of a flat token stream.

    lengths: [D] int64, tokens of each document in this stream (0 is allowed).
    past: [D] int64, tokens of each document that came before this stream and live in a cache.
    document: [N] int64, the document of each token.
    position: [N] int64, the place of each token in its document, `past` included.
    share: given where this stream is one rank's share of a longer one; `past` then lies on the ranks before.
    """

    lengths: Tensor
    past: Tensor
    document: Tensor
    position: Tensor
    share: Share | None = None
    _memo: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_lengths(
        cls,
        lengths: Sequence[int] | Tensor,
        past: Sequence[int] | Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> Documents:
        """Documents of the given lengths, one after another; `past` tokens of each were seen before."""
        lengths = torch.as_tensor(lengths, dtype=torch.int64, device=device)
        past = torch.zeros_like(lengths) if past is None else torch.as_tensor(past, device=lengths.device)
        document = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        starts = torch.cumsum(lengths, 0) - lengths
        index = torch.arange(len(document), device=lengths.device)
        return cls(lengths, past, document, index + (past - starts)[document])

    @property
    def num_tokens(self) -> int:
        return len(self.document)

    @property
    def num_documents(self) -> int:
        return len(self.lengths)

    @property
    def total(self) -> Tensor:
        """[D] int64: tokens of each document up to the end of this stream."""
        return self.past + self.lengths

    @property
    def whole(self) -> Tensor:
        """[D] int64: tokens of each document, those of the ranks behind included."""
        return self.total if self.share is None else self.share.whole

    @property
    def cu_seqlens(self) -> Tensor:
        """[D + 1] int64: document d is tokens `cu_seqlens[d]` to `cu_seqlens[d + 1] - 1` of the stream."""
        return torch.nn.functional.pad(torch.cumsum(self.lengths, 0), (1, 0))

    @property
    def one_each(self) -> bool:
        """Whether every document brings exactly one token: a step of decoding."""
        return self.memo("one_each", lambda: bool((self.lengths == 1).all()))

    def memo(self, key: Hashable, build: Callable[[], T]) -> T:
        """What `build` gave the first time for this key: layers of one kind share masks, tables and layouts."""
        if key not in self._memo:
            self._memo[key] = build()
        value: T = self._memo[key]
        return value

    def tokens(self, window: int | None = None) -> KeyList:
        """The key list of all tokens of this stream, preceded by the cached ones: all, or the last `window`."""
        kept = self.past if window is None else self.past.clamp(max=window)
        return KeyList(self.past - kept, self.past, self.total)

    def intervals(self, visible: Visible, keys: KeyList) -> Intervals:
        """Flat intervals [start, end) of each query over the key list, clipped to its document's keys."""
        offset = keys.offset[self.document]
        first = torch.maximum(visible.first, keys.first[self.document])
        return Intervals(first + offset, visible.end + offset, visible.kv_heads, visible.parts_of)

    def preceded(self, tokens: int) -> Documents:
        """The stream that begins so many tokens earlier, which are all of the first document's past."""

        def build() -> Documents:
            more = torch.zeros_like(self.past)
            more[:1] = tokens
            return Documents.from_lengths(self.lengths + more, self.past - more)

        return self.memo(("preceded", tokens), build) if tokens else self

    def dilated(self, dilation: int) -> tuple[Tensor, Documents]:
        """The stream regrouped so that tokens `dilation` apart become neighbours.

        Returns the order [N] int64 that sorts tokens by (document, position mod dilation, position), and the
        documents of the sorted stream: one for each document and residue.
        """
        residue = self.document * dilation + self.position % dilation
        order = torch.argsort(residue, stable=True)
        count = self.num_documents * dilation
        lengths = torch.bincount(residue, minlength=count)
        return order, Documents.from_lengths(lengths, residue_counts(self.past, dilation))


class Share(ABC):
    """A rank's contiguous share of a stream that several ranks hold together, and how it deals with the others.

    Only the first document of a share can have begun before it, so what a rank lacks is always one run of tokens, or of
    a mixer's keys, right before its own. `lm.model.shares` has the one implementation; mixers know this one only.

    stream: the documents of the whole stream. whole: [D] int64, tokens that each document of the share has there.
    bounds: rank r holds tokens bounds[r] to bounds[r + 1] of the stream.
    """

    stream: Documents
    whole: Tensor
    bounds: tuple[int, ...]

    @property
    def ranks(self) -> int:
        """How many ranks hold the stream."""
        return len(self.bounds) - 1

    @abstractmethod
    def by_heads(self, mixer: Any) -> bool:
        """Whether this mixer trades tokens for heads, rather than look at what its neighbours hold."""

    @abstractmethod
    def heads(self, heads: int) -> range:
        """Those of so many heads that `to_heads` brings to this rank."""

    @abstractmethod
    def to_heads(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """[n, heads, width] of this rank's tokens to [N, heads / ranks, width] of the whole stream. Collective."""

    @abstractmethod
    def to_tokens(self, x: Tensor) -> Tensor:
        """[N, heads / ranks, width] of the whole stream to [n, heads, width] of this rank's tokens. Collective."""

    @abstractmethod
    def fetch(self, tensors: Sequence[Tensor], first: Sequence[int], owned: Sequence[int]) -> tuple[Tensor, ...]:
        """This rank's rows [n, ...] behind those it needs of the ranks before. Collective.

        owned: rank r has rows owned[r] to owned[r + 1] of a list. first: it needs all from first[r] on. Every rank must
        use what it is given, rows or not, so that gradients can come back.
        """


def residue_counts(tokens: Tensor, dilation: int) -> Tensor:
    """[D * dilation]: how many of the first `tokens` [D] positions leave each residue modulo `dilation`."""
    residues = torch.arange(dilation, device=tokens.device)
    return (tokens[:, None] - residues + dilation - 1).div(dilation, rounding_mode="floor").clamp(min=0).flatten()
