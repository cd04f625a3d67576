"""How documents fill rows of tokens: text as one stream cut at row ends, documents with targets of their own whole.

A row is T tokens to read and the T tokens to predict, one further each. A target never crosses a document, and what is
left of a row is filled up with a masked document of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

import numpy as np

from lm.data.store import TokenStore

IGNORED = -100
PADDING_DOCUMENT = -1


class Piece(NamedTuple):
    """`length` tokens of a row that belong to document `document`, read from its token `offset` on.

    The document is numbered within its source, -1 for padding.
    """

    document: int
    length: int
    offset: int


class Rows(Protocol):
    """The rows of one epoch of a source."""

    sequence_length: int

    @property
    def num_documents(self) -> int:
        """Documents are numbered from 0 to one below it."""

    def __len__(self) -> int:
        """How many there are."""

    def pieces(self, row: int) -> list[Piece]:
        """What a row consists of, in order; lengths sum to T. No token is read."""

    def origin(self, document: int) -> tuple[str, int]:
        """Where a document was read, as `lm.data.store.TokenStore` has it; of one that is made, its kind and number."""

    def fill(self, row: int, tokens: np.ndarray, targets: np.ndarray) -> list[Piece]:
        """Writes one row into `tokens` and `targets` [T] int64, -100 where there is nothing to predict.

        Returns its pieces.
        """


def rows_of(store: TokenStore, sequence_length: int) -> Rows:
    """The rows of a store, by what it holds."""
    return WholeRows(store, sequence_length) if store.has_targets else StreamRows(store, sequence_length)


class JoinedRows:
    """The rows of several stores, one store after another."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = tuple(parts)
        self.sequence_length = parts[0].sequence_length
        self._rows = list(accumulate(map(len, parts), initial=0))
        self._documents = list(accumulate((part.num_documents for part in parts), initial=0))
        self.num_documents = self._documents[-1]

    def __len__(self) -> int:
        return self._rows[-1]

    def pieces(self, row: int) -> list[Piece]:
        part = self._part(row)
        return self._numbered(part, self.parts[part].pieces(row - self._rows[part]))

    def fill(self, row: int, tokens: np.ndarray, targets: np.ndarray) -> list[Piece]:
        part = self._part(row)
        return self._numbered(part, self.parts[part].fill(row - self._rows[part], tokens, targets))

    def origin(self, document: int) -> tuple[str, int]:
        part = bisect_right(self._documents, document) - 1
        return self.parts[part].origin(document - self._documents[part])

    def _part(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside [0, {len(self)})")
        return bisect_right(self._rows, row) - 1

    def _numbered(self, part: int, pieces: list[Piece]) -> list[Piece]:
        first = self._documents[part]
        return [
            piece if piece.document == PADDING_DOCUMENT else piece._replace(document=first + piece.document)
            for piece in pieces
        ]


class StreamRows:
    """Row j is tokens jT .. jT+T-1 of all documents one after another.

    Rows overlap by the one token that is predicted last, so every token of a document but its first is a target exactly
    once per epoch. A row's start begins a document: one cut by a row end is two.
    """

    def __init__(self, store: TokenStore, sequence_length: int) -> None:
        self.store = store
        self.sequence_length = sequence_length
        self.num_documents = store.num_documents

    def __len__(self) -> int:
        return -(-(self.store.num_tokens - 1) // self.sequence_length)

    def pieces(self, row: int) -> list[Piece]:
        start, stop, first, last = self._bounds(row)
        begins = self.store.offsets[first:last]
        bounds = self.store.offsets[first : last + 1].clip(start, stop)
        offsets = (bounds[:-1] - begins).tolist()
        pieces = list(map(Piece, range(first, last), np.diff(bounds).tolist(), offsets))
        return filled_up(pieces, self.sequence_length)

    def origin(self, document: int) -> tuple[str, int]:
        return self.store.origin(document)

    def _bounds(self, row: int) -> tuple[int, int, int, int]:
        """The tokens of a row, and the documents that they belong to, as two ranges."""
        start = row * self.sequence_length
        stop = min(start + self.sequence_length, self.store.num_tokens)
        first = int(np.searchsorted(self.store.offsets, start, side="right")) - 1
        last = int(np.searchsorted(self.store.offsets, stop, side="left"))
        return start, stop, first, last

    def fill(self, row: int, tokens: np.ndarray, targets: np.ndarray) -> list[Piece]:
        store = self.store
        start, stop, first, last = self._bounds(row)
        filled = stop - start
        window = store.tokens[start : stop + 1]
        tokens[:filled] = window[:filled]
        tokens[filled:] = store.tokens[-1]
        targets[: len(window) - 1] = window[1:]
        targets[len(window) - 1 :] = IGNORED
        ends = store.offsets[first + 1 : last + 1]
        targets[ends[ends <= stop] - 1 - start] = IGNORED
        return self.pieces(row)


class WholeRows:
    """Whole documents in stored order, as many in a row as fit; none may be longer than a row and a token.

    The last token of a document is only predicted, the first only read.
    """

    def __init__(self, store: TokenStore, sequence_length: int) -> None:
        self.store = store
        self.sequence_length = sequence_length
        self.num_documents = store.num_documents
        # Document d is read from place[d] to place[d + 1] of what all rows read.
        place = store.offsets - np.arange(len(store.offsets))
        self._first = [0]
        while (document := self._first[-1]) < store.num_documents:
            end = int(np.searchsorted(place, place[document] + sequence_length, side="right")) - 1
            if end == document:
                raise ValueError(f"document {document} has more than {sequence_length} + 1 tokens")
            self._first.append(end)

    def __len__(self) -> int:
        return len(self._first) - 1

    def pieces(self, row: int) -> list[Piece]:
        first, last = self._first[row], self._first[row + 1]
        lengths = np.diff(self.store.offsets[first : last + 1]) - 1
        pieces = [Piece(document, length, 0) for document, length in enumerate(lengths.tolist(), first)]
        return filled_up(pieces, self.sequence_length)

    def origin(self, document: int) -> tuple[str, int]:
        return self.store.origin(document)

    def fill(self, row: int, tokens: np.ndarray, targets: np.ndarray) -> list[Piece]:
        store = self.store
        first, last = self._first[row], self._first[row + 1]
        bounds = store.offsets[first : last + 1]
        targets[:] = IGNORED
        filled = 0
        for start, stop in pairwise(bounds.tolist()):
            end = filled + stop - start - 1
            tokens[filled:end] = store.tokens[start : stop - 1]
            predicted = store.targets[start + 1 : stop]
            targets[filled:end][predicted] = store.tokens[start + 1 : stop][predicted]
            filled = end
        tokens[filled:] = store.tokens[-1]
        return self.pieces(row)


def filled_up(pieces: list[Piece], sequence_length: int) -> list[Piece]:
    """The pieces of a row, and padding behind them where there is room left."""
    missing = sequence_length - sum(piece.length for piece in pieces)
    return [*pieces, Piece(PADDING_DOCUMENT, missing, 0)] if missing else pieces
