"""Batches for the model: any rows of the run, from any of its sources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lm.data.order import Order
from lm.data.read_ahead import ReadAhead
from lm.data.rows import PADDING_DOCUMENT, Rows


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows of T tokens, to be seen by the model as one flat stream of B*T tokens.

    Attributes:
        tokens: [B, T] int64.
        targets: [B, T] int64, the next token, or -100 where there is none to predict.
        lengths: lengths of the documents in the flat stream, in order; they sum to B*T. A row's start begins one.
        document_ids: for each length, the number of its document among all sources' documents, -1 for padding.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    lengths: list[int]
    document_ids: list[int]


@dataclass(frozen=True)
class DocumentSpan:
    """Tokens `begin` to `end` of a row, which are those of a document from its token `offset` on.

    source: which entry of data.sources. document: its number among all sources' documents, as in `Batch.document_ids`.
    """

    source: int
    document: int
    begin: int
    end: int
    offset: int


class Batches:
    """Any rows of the run, by global index."""

    def __init__(self, sources: Sequence[Rows], order: Order) -> None:
        """`order` locates rows in `sources`, which have rows of one length."""
        self.sources = tuple(sources)
        self.order = order
        self.sequence_length = sources[0].sequence_length
        first_documents = np.cumsum([0, *(source.num_documents for source in sources)])
        self._read_ahead = ReadAhead(self._read)
        self._first_document = [int(first) for first in first_documents[:-1]]

    def rows(self, indices: Iterable[int]) -> Batch:
        """The batch of these global row indices, a pure function of them and of the order.

        Where calls follow each other regularly, the next one is read ahead. Its memory is pinned where there is a GPU.
        """
        return self._read_ahead(tuple(indices))

    def _read(self, indices: Sequence[int]) -> Batch:
        places = [self.order.locate(index) for index in indices]
        tokens = np.empty((len(places), self.sequence_length), dtype=np.int64)
        targets = np.empty_like(tokens)
        lengths: list[int] = []
        document_ids: list[int] = []
        for number, place in enumerate(places):
            pieces = self.sources[place.source].fill(place.row, tokens[number], targets[number])
            lengths += [piece.length for piece in pieces]
            document_ids += [self._document_id(place.source, piece.document) for piece in pieces]
        read, learned = _pinned(torch.from_numpy(tokens)), _pinned(torch.from_numpy(targets))
        return Batch(read, learned, lengths, document_ids)

    def documents(self, row: int) -> list[DocumentSpan]:
        """What a global row consists of, padding left out; reads no token."""
        place = self.order.locate(row)
        spans = []
        begin = 0
        for piece in self.sources[place.source].pieces(place.row):
            end = begin + piece.length
            if piece.document != PADDING_DOCUMENT:
                document = self._document_id(place.source, piece.document)
                spans.append(DocumentSpan(place.source, document, begin, end, piece.offset))
            begin = end
        return spans

    def origin(self, span: DocumentSpan) -> tuple[str, int]:
        """The file that a document was read from, and the byte of its line or its row there; 0 where it is the file."""
        return self.sources[span.source].origin(span.document - self._first_document[span.source])

    def _document_id(self, source: int, document: int) -> int:
        return document if document == PADDING_DOCUMENT else self._first_document[source] + document


def _pinned(values: torch.Tensor) -> torch.Tensor:
    return values.pin_memory() if torch.cuda.is_available() else values
