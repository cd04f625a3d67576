"""Rows of whole documents: each document once, in one piece, with its own targets and no others."""

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.rows import IGNORED, PADDING_DOCUMENT, rows_of
from lm.data.store import StoreWriter, TargetedDocument, TokenStore
from lm.data.tokenizers import BytesTokenizer

LENGTH = 12
masks = st.lists(st.booleans(), min_size=1, max_size=LENGTH).filter(any)
corpora = st.lists(masks, min_size=1, max_size=12)


def store_of(documents: list[list[bool]]) -> TokenStore:
    """Documents of one token more than their mask, which says what is predicted."""
    with tempfile.TemporaryDirectory() as folder:
        with StoreWriter(Path(folder) / "store", BytesTokenizer(), keep_text=False) as writer:
            starts = np.cumsum([0, *(len(mask) + 1 for mask in documents)])
            writer.add_targeted(
                [
                    TargetedDocument(
                        np.arange(start, start + len(mask) + 1, dtype=np.uint32) % 256, np.array([0, *mask], bool), b""
                    )
                    for start, mask in zip(starts, documents, strict=False)
                ]
            )
        return TokenStore(Path(folder) / "store")


@given(documents=corpora, longer=st.integers(0, 30))
@settings(deadline=None, max_examples=100)
def test_every_document_is_read_whole_once_with_its_own_targets(documents: list[list[bool]], longer: int) -> None:
    length = LENGTH + longer
    store = store_of(documents)
    rows = rows_of([store], length)
    read = []
    for row in range(len(rows)):
        tokens, targets = np.full((2, length), -1, dtype=np.int64)
        numbers, lengths, _ = zip(*rows.fill(row, tokens, targets), strict=True)
        assert sum(lengths) == length
        assert set(numbers) != {PADDING_DOCUMENT}
        for (start, stop), number in zip(pairwise(np.cumsum([0, *lengths]).tolist()), numbers, strict=True):
            if number == PADDING_DOCUMENT:
                assert stop == length
                assert (targets[start:stop] == IGNORED).all()
                continue
            read.append(number)
            whole = store.tokens[store.offsets[number] : store.offsets[number + 1]].astype(np.int64)
            assert tokens[start:stop].tolist() == whole[:-1].tolist()
            assert targets[start:stop].tolist() == np.where(documents[number], whole[1:], IGNORED).tolist()
    assert read == list(range(len(documents)))


@given(documents=corpora, longer=st.integers(0, 30))
@settings(deadline=None, max_examples=50)
def test_a_row_takes_the_next_document_where_that_fits(documents: list[list[bool]], longer: int) -> None:
    rows = rows_of([store_of(documents)], LENGTH + longer)
    filled = []
    for row in range(len(rows)):
        numbers, lengths, _ = zip(*rows.pieces(row), strict=True)
        filled.append(sum(n for n, number in zip(lengths, numbers, strict=True) if number != PADDING_DOCUMENT))
        if row:
            first = next(iter(numbers))
            assert filled[row - 1] + len(documents[first]) > LENGTH + longer


def test_a_document_longer_than_a_row_is_not_cut() -> None:
    with pytest.raises(ValueError, match=r"document 1 has more than 3 \+ 1 tokens"):
        rows_of([store_of([[True] * 3, [True] * 4])], 3)
