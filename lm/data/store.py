"""Tokenized documents on disk, mapped into memory, one after another.

A document is a text, `[bos] text [eos]`, of which everything but the first token is predicted, or it brings its own
tokens and says which of them are; a store holds one or the other. It is a few flat little-endian files, and one of
held-out documents also keeps the text that is predicted. Writing is a stream, reading costs no memory but the pages
that are touched; `cache.py` makes the folder atomic and checks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lm.data.readers import Document
from lm.data.tokenizers import Tokenizer

_FILES: dict[str, str] = {
    "tokens": "<u4",
    "targets": "|b1",
    "offsets": "<i8",
    "document_bytes": "<i8",
    "counts": "<i8",
    "text": "|u1",
}


@dataclass(frozen=True, eq=False)
class TargetedDocument:
    """A document that brings its own tokens and targets.

    Attributes:
        tokens: [n] uint32, read as they are.
        targets: [n] bool, which of them are predicted; not the first, and at least one.
        utf8: the text that the predicted tokens spell.
    """

    tokens: np.ndarray
    targets: np.ndarray
    utf8: bytes


class TokenStore:
    """A store, open for reading.

    Attributes:
        tokens: [M] uint32, all documents.
        targets: [M] bool, which tokens are predicted; empty where all are but the first of each document.
        offsets: [D+1] int64; document d is tokens offsets[d] to offsets[d+1].
        document_bytes: [D] int64, UTF-8 bytes of the text that each document has predicted.
        counts: [V] int64, how often each token is predicted.
        text: that text, concatenated, as uint8; empty unless it was kept.
    """

    def __init__(self, folder: Path) -> None:
        self.tokens = _map(folder, "tokens")
        self.targets = _map(folder, "targets")
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
    def num_targets(self) -> int:
        """Tokens that are predicted."""
        return int(self.counts.sum())

    @property
    def num_bytes(self) -> int:
        """Bytes of UTF-8 text that the predicted tokens spell."""
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
        """Appends texts, in order."""
        if not documents:
            return
        bos = np.array([self._tokenizer.bos_id], dtype=np.uint32)
        eos = np.array([self._tokenizer.eos_id], dtype=np.uint32)
        encoded = self._tokenizer.encode_batch([document.text for document in documents])
        tokens = np.concatenate([part for ids in encoded for part in (bos, ids, eos)])
        lengths = [len(ids) + 2 for ids in encoded]
        targets = np.ones(len(tokens), dtype=bool)
        targets[np.cumsum([0, *lengths[:-1]])] = False
        self._append(tokens, targets, lengths, [document.utf8 for document in documents])

    def add_targeted(self, documents: Sequence[TargetedDocument]) -> None:
        """Appends documents that bring their own targets, in order."""
        if not documents:
            return
        targets = np.concatenate([document.targets for document in documents])
        self._write("targets", targets)
        tokens = np.concatenate([document.tokens for document in documents])
        lengths = [len(document.tokens) for document in documents]
        self._append(tokens, targets, lengths, [document.utf8 for document in documents])

    def _append(self, tokens: np.ndarray, targets: np.ndarray, lengths: list[int], texts: list[bytes]) -> None:
        starts = self._num_tokens + np.cumsum([0, *lengths])
        self._num_tokens = int(starts[-1])
        self._counts += np.bincount(tokens[targets], minlength=len(self._counts))
        self._write("tokens", tokens)
        self._write("offsets", starts[:-1])
        self._write("document_bytes", np.array([len(text) for text in texts]))
        if self._keep_text:
            self._files["text"].write(b"".join(texts))

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
