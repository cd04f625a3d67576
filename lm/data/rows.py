"""How documents fill rows of tokens: text as one stream cut at row ends, documents with targets of their own whole.

A row is T tokens to read and the T tokens to predict, one further each. A target never crosses a document, and what is
left of a row is filled up with a masked document of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np

from lm.data.store import Stores, TokenStore, spans

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


def rows_of(stores: Sequence[TokenStore], sequence_length: int) -> Rows:
    """The rows of one or more stores, which go on over their borders, by what they hold."""
    return (WholeRows if stores[0].has_targets else StreamRows)(Stores(stores), sequence_length)


class JoinedRows:
    """Rows of one kind after another, each with documents of its own."""

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
    """Row j is tokens jT .. jT+T-1 of all documents one after another, wherever one store ends and the next begins.

    Rows overlap by the one token that is predicted last, so every token of a document but its first is a target exactly
    once per epoch. A row's start begins a document: one cut by a row end is two.
    """

    def __init__(self, stores: Stores, sequence_length: int) -> None:
        self.stores = stores
        self.sequence_length = sequence_length
        self.num_documents = stores.num_documents

    def __len__(self) -> int:
        return -(-(self.stores.num_tokens - 1) // self.sequence_length)

    def pieces(self, row: int) -> list[Piece]:
        pieces: list[Piece] = []
        for part, start, stop in self._spans(row):
            offsets = self.stores.parts[part].offsets
            first, last = between(offsets, start, stop)
            bounds = offsets[first : last + 1].clip(start, stop)
            skipped = (bounds[:-1] - offsets[first:last]).tolist()
            before = self.stores.first_documents[part]
            pieces += map(Piece, range(before + first, before + last), np.diff(bounds).tolist(), skipped)
        return filled_up(pieces, self.sequence_length)

    def origin(self, document: int) -> tuple[str, int]:
        return self.stores.origin(document)

    def _spans(self, row: int) -> Iterator[tuple[int, int, int]]:
        """The tokens of a row, store by store."""
        start = row * self.sequence_length
        return spans(self.stores.first_tokens, start, min(start + self.sequence_length, self.stores.num_tokens))

    def fill(self, row: int, tokens: np.ndarray, targets: np.ndarray) -> list[Piece]:
        targets[:] = IGNORED
        begin = 0
        for part, start, stop in self._spans(row):
            store = self.stores.parts[part]
            tokens[begin : begin + stop - start] = store.tokens[start:stop]
            following = store.tokens[start + 1 : stop + 1]
            targets[begin : begin + len(following)] = following
            first, last = between(store.offsets, start, stop)
            ends = store.offsets[first + 1 : last + 1]
            targets[begin + ends[ends <= stop] - 1 - start] = IGNORED
            begin += stop - start
        tokens[begin:] = self.stores.parts[-1].tokens[-1]
        return self.pieces(row)


class WholeRows:
    """Whole documents in stored order, as many in a row as fit; none may be longer than a row and a token.

    The last token of a document is only predicted, the first only read.
    """

    def __init__(self, stores: Stores, sequence_length: int) -> None:
        self.stores = stores
        self.sequence_length = sequence_length
        self.num_documents = stores.num_documents
        # Document d is read from place[d] to place[d + 1] of what all rows read.
        lengths = [np.diff(store.offsets) - 1 for store in stores.parts]
        place = np.cumsum(np.concatenate([np.zeros(1, dtype=np.int64), *lengths]))
        self._first = [0]
        while (document := self._first[-1]) < stores.num_documents:
            end = int(np.searchsorted(place, place[document] + sequence_length, side="right")) - 1
            if end == document:
                raise ValueError(f"document {document} has more than {sequence_length} + 1 tokens")
            self._first.append(end)

    def __len__(self) -> int:
        return len(self._first) - 1

    def pieces(self, row: int) -> list[Piece]:
        pieces = []
        for document in range(self._first[row], self._first[row + 1]):
            store, number = self.stores.locate(document)
            pieces.append(Piece(document, int(store.offsets[number + 1] - store.offsets[number]) - 1, 0))
        return filled_up(pieces, self.sequence_length)

    def origin(self, document: int) -> tuple[str, int]:
        return self.stores.origin(document)

    def fill(self, row: int, tokens: np.ndarray, targets: np.ndarray) -> list[Piece]:
        targets[:] = IGNORED
        filled = 0
        for document in range(self._first[row], self._first[row + 1]):
            store, number = self.stores.locate(document)
            start, stop = int(store.offsets[number]), int(store.offsets[number + 1])
            end = filled + stop - start - 1
            tokens[filled:end] = store.tokens[start : stop - 1]
            predicted = store.targets[start + 1 : stop]
            targets[filled:end][predicted] = store.tokens[start + 1 : stop][predicted]
            filled = end
        tokens[filled:] = self.stores.parts[-1].tokens[-1]
        return self.pieces(row)


def between(begins: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """The first document that has something between two places, and the first behind those that have.

    begins: where each begins, and where the last ends.
    """
    return int(np.searchsorted(begins, start, side="right")) - 1, int(np.searchsorted(begins, stop, side="left"))


def filled_up(pieces: list[Piece], sequence_length: int) -> list[Piece]:
    """The pieces of a row, and padding behind them where there is room left."""
    missing = sequence_length - sum(piece.length for piece in pieces)
    return [*pieces, Piece(PADDING_DOCUMENT, missing, 0)] if missing else pieces


def fill_pieces(stores: Stores, pieces: list[Piece], tokens: np.ndarray, targets: np.ndarray) -> list[Piece]:
    """Writes a row of these pieces of texts into `tokens` and `targets`, as `Rows.fill` does."""
    begin = 0
    for document, length, offset in pieces:
        end = begin + length
        if document == PADDING_DOCUMENT:
            tokens[begin:end], targets[begin:end] = stores.parts[-1].tokens[-1], IGNORED
        else:
            store, number = stores.locate(document)
            start = int(store.offsets[number]) + offset
            tokens[begin:end] = store.tokens[start : start + length]
            targets[begin:end] = store.tokens[start + 1 : start + length + 1]
        begin = end
    return pieces
