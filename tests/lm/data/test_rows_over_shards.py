"""Rows go on where one shard ends and the next begins: the same ones, wherever the shards were cut."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.chosen import Chosen, ChosenRows
from lm.data.options import DataOptions
from lm.data.packing import packed_together
from lm.data.prepare import prepare
from lm.data.rows import IGNORED, Piece, Rows, StreamRows, WholeRows
from lm.data.show import Read, fill_rate
from lm.data.store import Stores, TokenStore

lengths_of_documents = st.lists(st.integers(1, 30), min_size=1, max_size=20)
cuts = st.sets(st.integers(1, 19), max_size=6)


class Shard(TokenStore):
    """Documents of these lengths in memory, whose tokens are numbered through from `begin` on."""

    def __init__(self, begin: int, lengths: np.ndarray, with_targets: bool = False) -> None:
        self.offsets = np.append(0, np.cumsum(lengths))
        self.tokens = np.arange(begin, begin + self.offsets[-1], dtype=np.uint32)
        self.num_documents, self.num_tokens = len(lengths), len(self.tokens)
        self.targets = (self.tokens % 3 == 0) if with_targets else np.zeros(0, dtype=bool)


def stores_of(lengths: list[int], cuts: set[int], with_targets: bool = False) -> Stores:
    """The documents in shards that end before the documents of these numbers."""
    ends = [0, *sorted(cut for cut in cuts if cut < len(lengths)), len(lengths)]
    before = np.append(0, np.cumsum(lengths))
    return Stores(
        [Shard(int(before[first]), np.array(lengths[first:last]), with_targets) for first, last in pairwise(ends)]
    )


def epoch(rows: Rows) -> list[tuple[list[Piece], list[int], list[int]]]:
    found = []
    for row in range(len(rows)):
        tokens, targets = np.full((2, rows.sequence_length), -1, dtype=np.int64)
        pieces = rows.fill(row, tokens, targets)
        assert pieces == rows.pieces(row)
        found.append((pieces, tokens.tolist(), targets.tolist()))
    return found


def in_rows(places: list[tuple[int, int]], count: int, length: int, last: int) -> list[tuple[list[int], list[int]]]:
    """Tokens and targets, one after another, cut into `count` rows; the last is filled up."""
    padded = places + [(last, IGNORED)] * (count * length - len(places))
    rows = [padded[row * length : (row + 1) * length] for row in range(count)]
    return [([token for token, _ in row], [target for _, target in row]) for row in rows]


@given(lengths=lengths_of_documents, cuts=cuts, length=st.integers(1, 25), min_tokens=st.sampled_from([0, 2, 12]))
@settings(deadline=None, max_examples=150)
def test_texts_are_one_stream_over_all_shards(lengths: list[int], cuts: set[int], length: int, min_tokens: int) -> None:
    stores = stores_of(lengths, cuts)
    ends = np.cumsum(lengths).tolist()
    documents = [list(range(end - size, end)) for end, size in zip(ends, lengths, strict=True)]
    rows: Rows
    if min_tokens:
        chosen = [Chosen.of(np.diff(store.offsets), min_tokens) for store in stores.parts]
        rows = ChosenRows(stores, chosen, length)
        places = [pair for tokens in documents if len(tokens) >= min_tokens for pair in pairwise(tokens)]
        count = -(-len(places) // length)
    else:
        rows = StreamRows(stores, length)
        places = [pair for tokens in documents for pair in zip(tokens, [*tokens[1:], IGNORED], strict=True)]
        count = -(-(len(places) - 1) // length)
        places = places[: count * length]
    found = epoch(rows)
    assert [(tokens, targets) for _, tokens, targets in found] == in_rows(places, count, length, ends[-1] - 1)
    for pieces, tokens, _ in found:
        read = [documents[piece.document][piece.offset :][: piece.length] for piece in pieces if piece.document >= 0]
        assert [token for part in read for token in part] == tokens[: sum(map(len, read))]
        assert all(later.offset == 0 for later in pieces[1:])


@given(lengths=st.lists(st.integers(2, 12), min_size=1, max_size=20), cuts=cuts, longer=st.integers(0, 30))
@settings(deadline=None, max_examples=60)
def test_samples_fill_rows_as_if_they_lay_in_one_shard(lengths: list[int], cuts: set[int], longer: int) -> None:
    many, one = stores_of(lengths, cuts, True), stores_of(lengths, set(), True)
    assert epoch(WholeRows(many, 11 + longer)) == epoch(WholeRows(one, 11 + longer))


def test_shards_are_packed_together_until_the_last_row_does_not_count() -> None:
    stores = [Shard(0, np.array([10] * size)) for size in (30, 30, 500, 20, 80, 10)]
    assert [len(group) for group in packed_together(stores, "best_fit", 10)] == [3, 3]
    assert [len(group) for group in packed_together(stores, "best_fit", 2)] == [1, 1, 1, 1, 2]
    assert [len(group) for group in packed_together(stores, "document", 10)] == [1] * 6
    assert packed_together(stores[:1], "best_fit", 1000) == [(stores[0],)]


@pytest.mark.parametrize("source", [{}, {"min_tokens": 5}])
@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_rows_longer_than_a_shard_are_full(tmp_path: Path, packing: str, source: dict[str, int]) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(60):
        (tmp_path / "texts" / f"{number:02}.txt").write_text(f"{number} " * (20 + number % 7))
    options = DataOptions.model_validate(
        {
            "tokenizer": {"kind": "bytes"},
            "sources": [{"path": str(tmp_path / "texts"), **source}],
            "sequence_length": 300,
            "packing": packing,
            "validation": {"fraction": 0},
            "shard_bytes": 200,
            "cache_dir": tmp_path / "cache",
        }
    )
    prepared = prepare(options, processes=1)
    count = len(prepared.train.sources[0])
    assert count >= 10
    assert fill_rate([Read(prepared.train, count)]) > 0.9
    whole = prepare(options.model_copy(update={"shard_bytes": 10**6}), processes=1)
    assert len(whole.train.sources[0]) == count
    assert "data.packing" in prepared.parts, "runs of before, whose rows ended with each shard, are told apart"
    assert "data.packing" not in whole.parts
    for row in range(count):
        assert (whole.train.rows([row]).tokens == prepared.train.rows([row]).tokens).all()
