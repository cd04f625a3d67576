"""Tokenized documents on disk, mapped into memory: `[bos] text [eos]` one after another.

A store is four flat little-endian files: the tokens, where each document starts, how many bytes of UTF-8 it was, and
how often each token occurs. A store of held-out documents also keeps their text. Writing is a stream, reading costs
no memory but the pages that are touched; `cache.py` makes the folder atomic and checks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lm.data.readers import Document
from lm.data.tokenizers import Tokenizer

_FILES: dict[str, str] = {"tokens": "<u4", "offsets": "<i8", "document_bytes": "<i8", "counts": "<i8", "text": "|u1"}


class TokenStore:
    """A store, open for reading.

    Attributes:
        tokens: [M] uint32, all documents.
        offsets: [D+1] int64; document d is tokens offsets[d] to offsets[d+1].
        document_bytes: [D] int64, UTF-8 bytes of each document's text.
        counts: [V] int64, occurrences of each token.
        text: the documents' UTF-8, concatenated, as uint8; empty unless it was kept.
    """

    def __init__(self, folder: Path) -> None:
        self.tokens = _map(folder, "tokens")
        self.offsets = _map(folder, "offsets")
        self.document_bytes = _map(folder, "document_bytes")
        self.counts = _map(folder, "counts")
        self.text = _map(folder, "text")

    @property
    def num_documents(self) -> int:
        return len(self.document_bytes)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_bytes(self) -> int:
        """Bytes of UTF-8 text that the tokens spell."""
        return int(self.document_bytes.sum())


class StoreWriter:
    """Streams documents into a folder; complete once the `with` block ends."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, keep_text: bool) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._keep_text = keep_text
        self._num_tokens = 0
        self._counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self._open = ExitStack()

    def __enter__(self) -> StoreWriter:
        self._folder.mkdir()
        self._files = {name: self._open.enter_context((self._folder / name).open("wb")) for name in _FILES}
        return self

    def add(self, documents: Sequence[Document]) -> None:
        """Appends documents, in order."""
        if not documents:
            return
        bos = np.array([self._tokenizer.bos_id], dtype=np.uint32)
        eos = np.array([self._tokenizer.eos_id], dtype=np.uint32)
        encoded = self._tokenizer.encode_batch([document.text for document in documents])
        tokens = np.concatenate([part for ids in encoded for part in (bos, ids, eos)])
        starts = self._num_tokens + np.cumsum([0, *(len(ids) + 2 for ids in encoded)])
        self._num_tokens = int(starts[-1])
        self._counts += np.bincount(tokens, minlength=len(self._counts))
        self._write("tokens", tokens)
        self._write("offsets", starts[:-1])
        self._write("document_bytes", np.array([len(document.utf8) for document in documents]))
        if self._keep_text:
            self._files["text"].write(b"".join(document.utf8 for document in documents))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write("offsets", np.array([self._num_tokens]))
        self._write("counts", self._counts)
        self._open.close()

    def _write(self, name: str, values: np.ndarray) -> None:
        self._files[name].write(values.astype(_FILES[name]).tobytes())


def _map(folder: Path, name: str) -> np.ndarray[Any, Any]:
    path = folder / name
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype=_FILES[name])
    return np.memmap(path, dtype=_FILES[name], mode="r")
