"""One stream of the documents that are long enough, cut at row ends: which they are, and their rows.

A document of n tokens takes n - 1 places of the stream: its last token is predicted and not read. Where the documents
of a shard begin among those that are chosen lies in the cache, mapped into memory, for rows of any length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np

from lm.data.cache import cached_folder
from lm.data.mapped import mapped
from lm.data.rows import Piece, between, fill_pieces, filled_up
from lm.data.store import Stores, TokenStore, spans

_FILES = ("documents", "begins")


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some documents of a store.

    Attributes:
        documents: [n] int64, their numbers, ascending.
        begins: [n+1] int64, how many places those before each take, and all.
    """

    documents: np.ndarray
    begins: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray, min_tokens: int) -> Chosen:
        """Documents of at least so many tokens, of those with these lengths; of a single token nothing is predicted."""
        documents = np.flatnonzero(lengths >= max(2, min_tokens))
        return cls(documents, np.append(0, np.cumsum(lengths[documents] - 1)))


class ChosenRows:
    """Row j is places jT .. jT+T-1 of the chosen documents one after another, whichever store they are in."""

    def __init__(self, stores: Stores, chosen: Sequence[Chosen], sequence_length: int) -> None:
        """chosen: of each store."""
        self.stores = stores
        self.chosen = tuple(chosen)
        self.sequence_length = sequence_length
        self.num_documents = stores.num_documents
        self._first = list(accumulate((int(part.begins[-1]) for part in chosen), initial=0))

    def __len__(self) -> int:
        return -(-self._first[-1] // self.sequence_length)

    def pieces(self, row: int) -> list[Piece]:
        return filled_up(list(self._pieces(row)), self.sequence_length)

    def _pieces(self, row: int) -> Iterator[Piece]:
        place = row * self.sequence_length
        for part, start, stop in spans(self._first, place, min(place + self.sequence_length, self._first[-1])):
            chosen, before = self.chosen[part], self.stores.first_documents[part]
            first, last = between(chosen.begins, start, stop)
            bounds = chosen.begins[first : last + 1].clip(start, stop)
            documents = (before + chosen.documents[first:last]).tolist()
            yield from map(
                Piece, documents, np.diff(bounds).tolist(), (bounds[:-1] - chosen.begins[first:last]).tolist()
            )

    def origin(self, document: int) -> tuple[str, int]:
        return self.stores.origin(document)

    def fill(self, row: int, tokens: np.ndarray, targets: np.ndarray) -> list[Piece]:
        return fill_pieces(self.stores, self.pieces(row), tokens, targets)


@dataclass(frozen=True)
class Choosing:
    """Writes which documents of a store are chosen into the cache, unless it is there.

    Attributes:
        folder: of the source in the cache.
        stores: its training documents, shard by shard.
        min_tokens: shorter documents are left out.
    """

    folder: Path
    stores: tuple[Path, ...]
    min_tokens: int

    def __call__(self, number: int, report: Callable[..., None] | None = None) -> None:
        """Of one of the stores."""
        cached_folder(self.folder, self._name(number), partial(self._build, number=number))

    def read(self, number: int) -> Chosen:
        """The documents of one of the stores, found unless they are known."""
        self(number)
        return Chosen(*(mapped(self.folder / self._name(number) / name, "<i8") for name in _FILES))

    def _name(self, number: int) -> str:
        return f"chosen-{self.min_tokens}-{self.stores[number].parent.name}"

    def _build(self, folder: Path, number: int) -> None:
        chosen = Chosen.of(np.diff(TokenStore(self.stores[number]).offsets), self.min_tokens)
        for name, values in zip(_FILES, (chosen.documents, chosen.begins), strict=True):
            values.astype("<i8").tofile(folder / name)
