"""How texts fill rows other than as one long stream: which pieces of which documents stand in which row.

A plan is made once for a sequence length and lies in the cache, mapped into memory, so what training holds does not
grow with the text. Best fit is decreasing: of the rows with room for a document, the fullest takes it, longest
documents first (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", arXiv 2404.10830). A document of n
tokens takes n - 1 places: its last token is predicted and not read. Shards are packed apart, each with those behind it
until they hold so many rows that the last, which is seldom full, does not count.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from lm.data.cache import cached_folder
from lm.data.fingerprint import digest
from lm.data.mapped import mapped
from lm.data.rows import Piece, fill_pieces, filled_up
from lm.data.store import Stores, TokenStore

Packing = Literal["best_fit", "document"]
_FORMAT = 2
_FILES = ("rows", "documents", "offsets", "lengths")
_ENOUGH_ROWS = 100


@dataclass(frozen=True, eq=False)
class PackingPlan:
    """Pieces of documents, row by row.

    Attributes:
        rows: [R+1] int64; row r has pieces rows[r] to rows[r+1].
        documents, offsets, lengths: [P] int64; piece p is read from token offsets[p] of documents[p] on.
    """

    rows: np.ndarray
    documents: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray


class PackedRows:
    """The rows of some stores by a plan. Every target of a document in the plan is in one row, once."""

    def __init__(self, stores: Stores, plan: PackingPlan, sequence_length: int) -> None:
        self.stores = stores
        self.plan = plan
        self.sequence_length = sequence_length
        self.num_documents = stores.num_documents

    def __len__(self) -> int:
        return len(self.plan.rows) - 1

    def pieces(self, row: int) -> list[Piece]:
        place = slice(int(self.plan.rows[row]), int(self.plan.rows[row + 1]))
        columns = (self.plan.documents[place], self.plan.lengths[place], self.plan.offsets[place])
        return filled_up(list(map(Piece, *(column.tolist() for column in columns))), self.sequence_length)

    def origin(self, document: int) -> tuple[str, int]:
        return self.stores.origin(document)

    def fill(self, row: int, tokens: np.ndarray, targets: np.ndarray) -> list[Piece]:
        return fill_pieces(self.stores, self.pieces(row), tokens, targets)


@dataclass(frozen=True)
class PlanWriter:
    """Writes the plan of some stores into the cache, unless it is there.

    Attributes:
        folder: of the source in the cache.
        groups: its training documents, shard by shard, those together that are packed together.
        min_tokens: shorter documents are left out.
    """

    folder: Path
    groups: tuple[tuple[Path, ...], ...]
    packing: Packing
    sequence_length: int
    min_tokens: int

    def __call__(self, number: int, report: Callable[..., None] | None = None) -> None:
        """The plan of one of the groups."""
        cached_folder(self.folder, self._name(number), partial(self._build, number=number))

    def read(self, number: int) -> PackingPlan:
        """The plan of one of the groups, made unless it is there."""
        self(number)
        folder = self.folder / self._name(number)
        return PackingPlan(*(mapped(folder / name, "<i8") for name in _FILES))

    def _name(self, number: int) -> str:
        first, *others = (store.parent.name for store in self.groups[number])
        shards = f"{first}-and-{digest(others)}" if others else first
        return f"packed-{digest([_FORMAT, self.packing, self.sequence_length, self.min_tokens])}-{shards}"

    def _build(self, folder: Path, number: int) -> None:
        lengths = np.concatenate([np.diff(TokenStore(store).offsets) for store in self.groups[number]])
        chosen = np.flatnonzero(lengths >= max(2, self.min_tokens))  # of a single token nothing is predicted
        plan = make_plan(lengths[chosen] - 1, self.packing, self.sequence_length)
        for name, values in zip(_FILES, (plan.rows, chosen[plan.documents], plan.offsets, plan.lengths), strict=True):
            values.astype("<i8").tofile(folder / name)


def packed_together(
    stores: Sequence[TokenStore], packing: Packing, sequence_length: int
) -> list[tuple[TokenStore, ...]]:
    """Stores in groups that are packed on their own, each large enough to lose little by the last of its rows."""
    wanted = 0 if packing == "document" else _ENOUGH_ROWS * sequence_length
    groups: list[list[TokenStore]] = []
    size = wanted
    for store in stores:
        if size >= wanted:
            groups.append([])
            size = 0
        groups[-1].append(store)
        size += store.num_tokens
    if size < wanted and len(groups) > 1:
        last = groups.pop()
        groups[-1] += last
    return [tuple(group) for group in groups]


def make_plan(places: np.ndarray, packing: Packing, sequence_length: int) -> PackingPlan:
    """Rows for documents that take so many places each; none takes 0."""
    documents, offsets, lengths = _cut(places, sequence_length)
    if packing == "document":
        return PackingPlan(np.arange(len(documents) + 1), documents, offsets, lengths)
    rows = _best_fit(lengths, sequence_length)
    order = np.argsort(rows, kind="stable")
    begins = np.searchsorted(rows[order], np.arange(rows.max(initial=-1) + 2))
    return PackingPlan(begins, documents[order], offsets[order], lengths[order])


def _cut(places: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces of at most a row: only of a document that is longer there are several."""
    counts = -(-places // sequence_length)
    documents = np.repeat(np.arange(len(places)), counts)
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    offsets = (np.arange(len(documents)) - firsts) * sequence_length
    return documents, offsets, np.minimum(places[documents] - offsets, sequence_length)


def _best_fit(lengths: np.ndarray, sequence_length: int) -> np.ndarray:
    """The row of each piece."""
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    rows = np.empty(len(lengths), dtype=np.int64)
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of with_room, ascending
    count = 0
    # Pieces of one length come together. A row that takes one of them takes all it can, since it is then the fullest.
    bounds = np.append(np.flatnonzero(np.diff(ordered, prepend=-1)), len(ordered)).tolist()
    for at, end in pairwise(bounds):
        length = int(ordered[at])
        while at < end:
            place = bisect_left(rooms, length)
            if place < len(rooms):
                room = rooms[place]
                row = with_room[room].pop()
                if not with_room[room]:
                    del with_room[room]
                    rooms.pop(place)
            else:
                room, row, count = sequence_length, count, count + 1
            taken = min(room // length, end - at)
            rows[order[at : at + taken]] = row
            at += taken
            left = room - taken * length
            if left:
                if left not in with_room:
                    with_room[left] = []
                    insort(rooms, left)
                with_room[left].append(row)
    return rows


def shortest_of_longest(stores: list[TokenStore], share: float) -> int:
    """Tokens of the shortest document among the longest ones that together hold this share of all tokens."""
    counts = np.zeros(0, dtype=np.int64)
    for store in stores:
        found = np.bincount(np.diff(store.offsets))
        counts = np.pad(counts, (0, max(0, len(found) - len(counts))))
        counts[: len(found)] += found
    tokens = (counts * np.arange(len(counts)))[::-1].cumsum()
    reached = int(np.searchsorted(tokens, share * tokens[-1]))
    return len(counts) - 1 - min(reached, len(counts) - 1)
