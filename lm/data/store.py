"""Tokenized documents on disk, mapped into memory, one after another.

A document is a text, `[bos] text [eos]` or `[bos] text`, of which everything but the first token is predicted, or it
brings its own tokens and says which of them are; a store holds one or the other. It is a few flat little-endian files,
which also tell where each document was read, and one of held-out documents keeps the text that is predicted. Writing is
a stream, reading costs no memory but the pages that are touched; `cache.py` makes the folder atomic and checks it.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lm.data.mapped import mapped
from lm.data.readers import Document
from lm.data.tokenizers import Tokenizer

_FILES: dict[str, str] = {
    "tokens": "<u4",
    "targets": "|b1",
    "offsets": "<i8",
    "document_bytes": "<i8",
    "counts": "<i8",
    "text": "|u1",
    "places": "<i8",
    "files": "<i4",
}
_NAMES = "names.json"
CONTENT = ("tokens", "targets", "offsets", "document_bytes", "text")
"""The files that decide what is trained on; the others tell where it was read, or are counted from these."""


@dataclass(frozen=True, eq=False)
class TargetedDocument:
    """A document that brings its own tokens and targets.

    Attributes:
        tokens: [n] uint32, read as they are.
        targets: [n] bool, which of them are predicted; not the first, and at least one.
        utf8: the text that the predicted tokens spell.
        origin: as `lm.data.readers.Document` has it.
    """

    tokens: np.ndarray
    targets: np.ndarray
    utf8: bytes
    origin: tuple[str, int] = ("", 0)


class TokenStore:
    """A store, open for reading; what is read in training stays readable where the files are deleted.

    Attributes:
        tokens: [M] uint32, all documents.
        targets: [M] bool, which tokens are predicted; empty where all are but the first of each document.
        offsets: [D+1] int64; document d is tokens offsets[d] to offsets[d+1].
        document_bytes: [D] int64, UTF-8 bytes of the text that each document has predicted.
        counts: [V] int64, how often each token is predicted.
        text: that text, concatenated, as uint8; empty unless it was kept.
        files, places: [D] int32, int64: which of `names` a document was read from, and the byte of its line or its row.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_tokens = _length(folder, "tokens")
        self.num_documents = _length(folder, "document_bytes")
        self.has_targets = _length(folder, "targets") > 0
        self.tokens = _map(folder, "tokens")
        self.targets = _map(folder, "targets")
        self.offsets = _map(folder, "offsets")

    @cached_property
    def document_bytes(self) -> np.ndarray[Any, Any]:
        return _map(self.folder, "document_bytes")

    @cached_property
    def counts(self) -> np.ndarray[Any, Any]:
        return _map(self.folder, "counts")

    @cached_property
    def text(self) -> np.ndarray[Any, Any]:
        return _map(self.folder, "text")

    @cached_property
    def files(self) -> np.ndarray[Any, Any]:
        return _map(self.folder, "files")

    @cached_property
    def places(self) -> np.ndarray[Any, Any]:
        return _map(self.folder, "places")

    @cached_property
    def names(self) -> list[str]:
        """The files that documents were read from."""
        names: list[str] = json.loads((self.folder / _NAMES).read_text())
        return names

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted."""
        return int(self.counts.sum())

    @property
    def num_bytes(self) -> int:
        """Bytes of UTF-8 text that the predicted tokens spell."""
        return int(self.document_bytes.sum())

    def origin(self, document: int) -> tuple[str, int]:
        """The file that a document was read from, and the byte of its line, or its row; 0 where it is the file."""
        return self.names[int(self.files[document])], int(self.places[document])

    def documents(self) -> Iterator[TargetedDocument]:
        """Every document with its tokens, its targets and what was kept of its text."""
        at = 0
        for number, size in enumerate(self.document_bytes.tolist()):
            place = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
            text = self.text[at : at + size].tobytes()
            yield TargetedDocument(self.tokens[place], self.targets[place], text, origin=self.origin(number))
            at += size


class Stores:
    """Several stores one after another, documents numbered through.

    Attributes:
        parts: the stores; all hold texts, or all documents with targets of their own.
        first_tokens, first_documents: how many there are before each store, and before the end.
    """

    def __init__(self, parts: Sequence[TokenStore]) -> None:
        self.parts = tuple(parts)
        self.first_tokens = list(accumulate((part.num_tokens for part in parts), initial=0))
        self.first_documents = list(accumulate((part.num_documents for part in parts), initial=0))

    @property
    def num_tokens(self) -> int:
        """Of all documents."""
        return self.first_tokens[-1]

    @property
    def num_documents(self) -> int:
        """Documents are numbered from 0 to one below it."""
        return self.first_documents[-1]

    def locate(self, document: int) -> tuple[TokenStore, int]:
        """The store that holds a document, and the document's number there."""
        part = bisect_right(self.first_documents, document) - 1
        return self.parts[part], document - self.first_documents[part]

    def origin(self, document: int) -> tuple[str, int]:
        """Where a document was read, as `TokenStore` has it."""
        store, number = self.locate(document)
        return store.origin(number)


def spans(firsts: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """What lies between two places of several parts one after another: each part, and from where to where in it.

    firsts: how many places there are before each part, and before the end. A part may be empty.
    """
    part = bisect_right(firsts, start) - 1
    while start < stop:
        end = min(stop, firsts[part + 1])
        if start < end:
            yield part, start - firsts[part], end - firsts[part]
        start, part = end, part + 1


class StoreWriter:
    """Streams documents into a folder; complete once the `with` block ends. num_tokens: written so far."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, keep_text: bool) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._keep_text = keep_text
        self.num_tokens = 0
        self._counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self._names: dict[str, int] = {}
        self._open = ExitStack()

    def __enter__(self) -> StoreWriter:
        self._folder.mkdir()
        self._files = {name: self._open.enter_context((self._folder / name).open("wb")) for name in _FILES}
        return self

    def add(self, documents: Sequence[Document]) -> None:
        """Appends texts, in order."""
        if not documents:
            return
        encoded = self._tokenizer.encode_batch([document.text for document in documents])
        texts = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        lengths = texts + 1 + self._tokenizer.ends_texts
        ends = np.cumsum(lengths)
        begins = ends - lengths
        tokens = np.empty(ends[-1], dtype=np.uint32)
        tokens[begins] = self._tokenizer.bos_id
        if self._tokenizer.ends_texts:
            tokens[ends - 1] = self._tokenizer.eos_id
        for begin, ids in zip(begins.tolist(), encoded, strict=True):
            tokens[begin + 1 : begin + 1 + len(ids)] = ids
        predicted = np.bincount(tokens, minlength=len(self._counts))
        predicted[self._tokenizer.bos_id] -= len(documents)  # the first of each
        self._append(tokens, predicted, lengths, documents)

    def add_targeted(self, documents: Sequence[TargetedDocument]) -> None:
        """Appends documents that bring their own targets, in order."""
        if not documents:
            return
        targets = np.concatenate([document.targets for document in documents])
        self._write("targets", targets)
        tokens = np.concatenate([document.tokens for document in documents])
        lengths = np.array([len(document.tokens) for document in documents])
        self._append(tokens, np.bincount(tokens[targets], minlength=len(self._counts)), lengths, documents)

    def add_stored(self, documents: Sequence[TargetedDocument]) -> None:
        """Appends documents of another store, as that gives them."""
        if not documents or len(documents[0].targets):
            self.add_targeted(documents)
            return
        tokens = np.concatenate([document.tokens for document in documents])
        predicted = np.bincount(tokens, minlength=len(self._counts))
        for document in documents:
            predicted[document.tokens[0]] -= 1
        self._append(tokens, predicted, np.array([len(document.tokens) for document in documents]), documents)

    def _append(
        self,
        tokens: np.ndarray,
        predicted: np.ndarray,
        lengths: np.ndarray,
        documents: Sequence[Document] | Sequence[TargetedDocument],
    ) -> None:
        starts = self.num_tokens + np.cumsum(lengths) - lengths
        self.num_tokens += len(tokens)
        self._counts += predicted
        self._write("tokens", tokens)
        self._write("offsets", starts)
        self._write("document_bytes", np.array([len(document.utf8) for document in documents]))
        files = [self._names.setdefault(document.origin[0], len(self._names)) for document in documents]
        self._write("files", np.array(files))
        self._write("places", np.array([document.origin[1] for document in documents]))
        if self._keep_text:
            self._files["text"].write(b"".join(document.utf8 for document in documents))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write("offsets", np.array([self.num_tokens]))
        self._write("counts", self._counts)
        self._open.close()
        (self._folder / _NAMES).write_text(json.dumps(list(self._names)))

    def _write(self, name: str, values: np.ndarray) -> None:
        self._files[name].write(values.astype(_FILES[name], copy=False).data)


def _length(folder: Path, name: str) -> int:
    return (folder / name).stat().st_size // np.dtype(_FILES[name]).itemsize


def _map(folder: Path, name: str) -> np.ndarray[Any, Any]:
    return mapped(folder / name, _FILES[name])
