"""Rows: every target once, none across documents, whoever asks for them."""

import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.batches import Batch, Batches
from lm.data.order import SequentialOrder, ShuffledOrder
from lm.data.readers import Document
from lm.data.rows import IGNORED, PADDING_DOCUMENT, rows_of
from lm.data.store import StoreWriter, TokenStore
from lm.data.tokenizers import BytesTokenizer

BOS, EOS = BytesTokenizer.bos_id, BytesTokenizer.eos_id
corpora = st.lists(st.text(alphabet="abc", min_size=1, max_size=12), min_size=1, max_size=12)


def store_of(texts: list[str]) -> TokenStore:
    with tempfile.TemporaryDirectory() as folder:
        with StoreWriter(Path(folder) / "store", BytesTokenizer(), keep_text=False) as writer:
            writer.add([Document(text, text.encode()) for text in texts])
        # The mapping outlives the deleted files.
        return TokenStore(Path(folder) / "store")


def epoch(texts: list[str], sequence_length: int) -> Batch:
    store = store_of(texts)
    rows = rows_of([store], sequence_length)
    return Batches([rows], SequentialOrder([len(rows)])).rows(range(len(rows)))


@given(texts=corpora, sequence_length=st.integers(1, 30))
@settings(deadline=None, max_examples=80)
def test_every_token_but_bos_is_a_target_exactly_once_per_epoch(texts: list[str], sequence_length: int) -> None:
    batch = epoch(texts, sequence_length)
    targets = batch.targets[batch.targets != IGNORED].tolist()
    assert targets == [token for text in texts for token in [*text.encode(), EOS]]
    assert (batch.targets[-1] != IGNORED).any(), "the last row adds nothing"


@given(texts=corpora, sequence_length=st.integers(1, 30))
@settings(deadline=None, max_examples=80)
def test_documents_of_the_flat_stream_hold_their_own_tokens_and_targets(texts: list[str], sequence_length: int) -> None:
    batch = epoch(texts, sequence_length)
    documents = [[BOS, *text.encode(), EOS] for text in texts]
    read = [0] * len(texts)
    start = 0
    for length, document in zip(batch.lengths, batch.document_ids, strict=True):
        tokens = batch.tokens.flatten()[start : start + length].tolist()
        targets = batch.targets.flatten()[start : start + length].tolist()
        start += length
        assert length >= 1
        if document == PADDING_DOCUMENT:
            assert set(targets) == {IGNORED}
            continue
        begin = read[document]
        read[document] += length
        assert tokens == documents[document][begin : begin + length]
        assert targets == [*documents[document], IGNORED][begin + 1 : begin + length + 1]
    assert start == batch.tokens.numel()


@given(texts=corpora, sequence_length=st.integers(1, 30))
@settings(deadline=None, max_examples=40)
def test_a_row_start_begins_a_document(texts: list[str], sequence_length: int) -> None:
    batch = epoch(texts, sequence_length)
    starts = torch.tensor([0, *batch.lengths]).cumsum(0).tolist()
    assert set(range(0, batch.tokens.numel() + 1, sequence_length)) <= set(starts)


def training_batches(seed: int = 0) -> Batches:
    stores = [store_of(["abcabc" * 9, "b" * 31]), store_of(["c" * 50, "a", "bb" * 8])]
    rows = [rows_of([store], 8) for store in stores]
    return Batches(rows, ShuffledOrder([len(source) for source in rows], [2, 1], seed))


@given(ranks=st.integers(1, 8), step=st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_any_division_of_a_batch_among_ranks_reads_the_same_rows(ranks: int, step: int) -> None:
    whole_batch, divided = training_batches(), training_batches()
    indices = range(step * 24, (step + 1) * 24)
    whole = whole_batch.rows(indices)
    parts = [divided.rows(indices[rank::ranks]) for rank in range(ranks)]
    for rank, part in enumerate(parts):
        assert torch.equal(part.tokens, whole.tokens[rank::ranks])
        assert torch.equal(part.targets, whole.targets[rank::ranks])
    assert sorted(id for part in parts for id in part.document_ids) == sorted(whole.document_ids)


def test_document_ids_tell_sources_apart() -> None:
    batches = training_batches()
    ids = {0: set(), 1: set()}
    for index in range(60):
        ids[batches.order.locate(index).source].update(batches.rows([index]).document_ids)
    assert ids[0] - {PADDING_DOCUMENT} == {0, 1}
    assert ids[1] - {PADDING_DOCUMENT} == {2, 3, 4}


@given(texts=corpora, sequence_length=st.integers(1, 30))
@settings(deadline=None, max_examples=40)
def test_documents_of_a_row_say_where_its_tokens_are_from(texts: list[str], sequence_length: int) -> None:
    rows = rows_of([store_of(texts)], sequence_length)
    batches = Batches([rows], ShuffledOrder([len(rows)], [1], 0))
    for index in range(len(rows)):
        batch = batches.rows([index])
        spans = batches.documents(index)
        assert [span.document for span in spans] == [id for id in batch.document_ids if id != PADDING_DOCUMENT]
        for span in spans:
            document = [BOS, *texts[span.document].encode(), EOS]
            read = batch.tokens[0, span.begin : span.end].tolist()
            assert read == document[span.offset : span.offset + len(read)]


def test_tensors_are_int64_rows() -> None:
    batch = training_batches().rows([5, 1])
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.tokens.shape == batch.targets.shape == (2, 8)
    assert sum(batch.lengths) == 16
