"""A store gives back what was written, from any number of additions."""

import os
import shutil
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.readers import Document
from lm.data.store import StoreWriter, TargetedDocument, TokenStore
from lm.data.tokenizers import BytesTokenizer

texts = st.lists(st.text(min_size=1, max_size=20), max_size=10)


@given(additions=st.lists(texts, max_size=4), keep_text=st.booleans(), ends=st.booleans())
@settings(deadline=None, max_examples=40)
def test_documents_come_back(tmp_path_factory, additions: list[list[str]], keep_text: bool, ends: bool) -> None:
    tokenizer = BytesTokenizer(ends)
    folder: Path = tmp_path_factory.mktemp("stores") / "store"
    with StoreWriter(folder, tokenizer, keep_text) as writer:
        for addition in additions:
            writer.add([Document(text, text.encode()) for text in addition])
    store = TokenStore(folder)
    written = [text for addition in additions for text in addition]
    assert store.num_documents == len(written)
    assert store.tokens.dtype == np.uint32
    for number, text in enumerate(written):
        ids = store.tokens[store.offsets[number] : store.offsets[number + 1]].tolist()
        assert ids == [tokenizer.bos_id, *tokenizer.encode(text), *([tokenizer.eos_id] if ends else [])]
    assert store.document_bytes.tolist() == [len(text.encode()) for text in written]
    assert store.num_bytes == len("".join(written).encode())
    assert store.text.tobytes() == ("".join(written).encode() if keep_text else b"")
    assert store.counts.sum() == store.num_targets == store.num_tokens - store.num_documents
    assert store.counts[tokenizer.eos_id] == ends * store.num_documents
    assert store.counts[tokenizer.bos_id] == len(store.targets) == 0


@given(
    additions=st.lists(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), max_size=4), max_size=3),
    keep_text=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_targeted_documents_come_back(tmp_path_factory, additions: list[list[list[bool]]], keep_text: bool) -> None:
    folder: Path = tmp_path_factory.mktemp("stores") / "store"
    documents = [
        [TargetedDocument(np.arange(len(mask) + 1, dtype=np.uint32), np.array([False, *mask]), b"xy") for mask in masks]
        for masks in additions
    ]
    with StoreWriter(folder, BytesTokenizer(), keep_text) as writer:
        for addition in documents:
            writer.add_targeted(addition)
    store = TokenStore(folder)
    written = [document for addition in documents for document in addition]
    for number, document in enumerate(written):
        place = slice(store.offsets[number], store.offsets[number + 1])
        assert store.tokens[place].tolist() == document.tokens.tolist()
        assert store.targets[place].tolist() == document.targets.tolist()
    assert store.counts.tolist() == np.bincount(store.tokens[store.targets], minlength=258).tolist()
    assert store.num_bytes == 2 * len(written)
    assert store.text.tobytes() == (b"xy" * len(written) if keep_text else b"")


def test_an_open_store_holds_no_file_open(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store", BytesTokenizer(), keep_text=True) as writer:
        writer.add([Document("some text", b"some text")])
    before = len(os.listdir("/proc/self/fd"))
    stores = [TokenStore(tmp_path / "store") for _ in range(20)]
    assert {store.num_targets + len(store.text) + len(store.origin(0)) for store in stores} == {21}
    assert len(os.listdir("/proc/self/fd")) == before
    shutil.rmtree(tmp_path / "store")
    assert stores[0].tokens[1:-1].tolist() == list(b"some text")
