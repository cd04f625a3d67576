"""Rows of tokens for the model, cut from token stores.

A store is the concatenation of its documents, `[bos] text [eos]` each. Row j is tokens jT .. jT+T-1 with the tokens
one further as targets, so rows overlap by one token and every token of a document but its bos is a target exactly
once per epoch. A target never crosses a document: where the next token belongs to another one, it is masked. The
last row of an epoch is filled up with a masked document of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lm.data.order import Order
from lm.data.store import TokenStore

IGNORED = -100
PADDING_DOCUMENT = -1


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows of T tokens, to be seen by the model as one flat stream of B*T tokens.

    Attributes:
        tokens: [B, T] int64.
        targets: [B, T] int64, the next token, or -100 where there is none to predict.
        lengths: lengths of the documents in the flat stream, in order; they sum to B*T. A row's start begins a
            document: one cut by a row end is two.
        document_ids: for each length, the number of its document among all sources' documents, -1 for padding.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    lengths: list[int]
    document_ids: list[int]


class Batches:
    """Any rows of the run, by global index."""

    def __init__(self, stores: Sequence[TokenStore], order: Order, sequence_length: int) -> None:
        self.stores = tuple(stores)
        self.order = order
        self.sequence_length = sequence_length
        first_documents = np.cumsum([0, *(store.num_documents for store in stores)])
        self._first_document = [int(first) for first in first_documents[:-1]]

    def rows(self, indices: Iterable[int]) -> Batch:
        """The batch of these global row indices, a pure function of them and of the order."""
        places = [self.order.locate(index) for index in indices]
        tokens = np.empty((len(places), self.sequence_length), dtype=np.int64)
        targets = np.empty_like(tokens)
        lengths: list[int] = []
        document_ids: list[int] = []
        for number, place in enumerate(places):
            row_lengths, documents = self._fill(self.stores[place.source], place.row, tokens[number], targets[number])
            first = self._first_document[place.source]
            lengths += row_lengths
            document_ids += [first + document if document >= 0 else PADDING_DOCUMENT for document in documents]
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), lengths, document_ids)

    def _fill(
        self, store: TokenStore, row: int, tokens: np.ndarray, targets: np.ndarray
    ) -> tuple[list[int], list[int]]:
        """Writes one row in place; returns its documents' lengths and their numbers in the store."""
        start = row * self.sequence_length
        stop = min(start + self.sequence_length, store.num_tokens)
        filled = stop - start
        window = store.tokens[start : stop + 1]
        tokens[:filled] = window[:filled]
        tokens[filled:] = store.tokens[-1]
        targets[: len(window) - 1] = window[1:]
        targets[len(window) - 1 :] = IGNORED

        first = int(np.searchsorted(store.offsets, start, side="right")) - 1
        last = int(np.searchsorted(store.offsets, stop, side="left"))
        bounds = store.offsets[first : last + 1].clip(start, stop) - start
        ends = store.offsets[first + 1 : last + 1]
        targets[ends[ends <= stop] - 1 - start] = IGNORED
        lengths = np.diff(bounds).tolist()
        documents = list(range(first, last))
        if filled < self.sequence_length:
            lengths.append(self.sequence_length - filled)
            documents.append(PADDING_DOCUMENT)
        return lengths, documents


def rows_per_epoch(store: TokenStore, sequence_length: int) -> int:
    """Rows that cover every target of a store once."""
    return -(-(store.num_tokens - 1) // sequence_length)
