"""One shard of a source as tokens: what is trained on and what is held out, two stores, and what they amount to."""

from __future__ import annotations

import copy
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from lm.data.cache import cached_folder
from lm.data.duplicates import duplicates_of
from lm.data.encoding import SampleEncoder
from lm.data.manifest import MAX_EXAMPLES, Manifest, counted
from lm.data.options import ValidationOptions
from lm.data.readers import Document, Unreadable, is_filter
from lm.data.samples import Sample
from lm.data.sharding import shard_name
from lm.data.sources import Source
from lm.data.split import Split
from lm.data.store import StoreWriter, TargetedDocument, TokenStore
from lm.data.tokenizers import Tokenizer

_ENCODE_BYTES = 4_000_000
_SHARD = "shard.json"
PLACES = "split_places"
"""Hashes of a shard's documents by which they were divided, ascending, float64; no file where nothing is held out."""


@dataclass(frozen=True, eq=False)
class Tokenizing:
    """Makes the shards of a source, each unless it is there.

    Attributes:
        folder: of the source in the cache.
        encoder: of samples; None for texts.
        split: the rule that the shards are made by.
        names: of the folders of those shards that are not called as usual.
        duplicates: see `lm.data.duplicates`; None where equal texts are kept.
    """

    folder: Path
    source: Source
    tokenizer: Tokenizer
    encoder: SampleEncoder | None
    split: Split
    duplicates: Path | None = None
    names: Mapping[int, str] = field(default_factory=dict)

    @property
    def options(self) -> ValidationOptions:
        """What is to be held out."""
        return self.split.options

    def name(self, number: int) -> str:
        """What the folder of a shard is called."""
        return self.names.get(number, shard_name(number))

    def __call__(self, number: int, report: Callable[..., None]) -> None:
        """Makes shard `number`; `report` hears (bytes of text, documents, tokens) that were added."""
        cached_folder(self.folder, self.name(number), partial(self._build, number=number, report=report))

    def _build(self, folder: Path, number: int, report: Callable[..., None]) -> None:
        skipped: list[Unreadable] = []
        dropped = set() if self.duplicates is None else set(duplicates_of(self.duplicates, number).tolist())
        encoder = copy.copy(self.encoder)
        encode = None
        if encoder is not None:
            encoder.cut = encoder.dropped = 0
            encode = partial(encoder, on_bad=partial(self.source.leave_out, on_skip=skipped.append))
        documents = (
            document for place, document in enumerate(self.source.shard(number, skipped.append)) if place not in dropped
        )
        train = StoreWriter(folder / "train", self.tokenizer, keep_text=False)
        held_out = StoreWriter(folder / "held_out", self.tokenizer, keep_text=True)
        places = array("d")
        with train, held_out:
            for batch in _in_batches(documents):
                before = train.num_tokens
                places.extend(self._add(batch, train, held_out, encode))
                report(sum(len(document.utf8) for document in batch), len(batch), train.num_tokens - before)
        kept = counted(TokenStore(folder / "train"), self.tokenizer)
        found = replace(
            kept,
            held_out=TokenStore(folder / "held_out").num_documents,
            duplicates=len(dropped),
            cut=0 if encoder is None else encoder.cut,
            dropped=0 if encoder is None else encoder.dropped,
            skipped=dict(Counter(item.kind for item in skipped)),
            examples=tuple(_in_words(skipped)),
        )
        (folder / _SHARD).write_text(json.dumps(found.to_json()))
        if self.options.fraction:
            write_places(folder, places)

    def _add(
        self,
        batch: Sequence[Document],
        train: StoreWriter,
        held_out: StoreWriter,
        encode: Callable[[list[Sample]], list[TargetedDocument]] | None,
    ) -> list[float]:
        """Writes the documents to their sides; the hashes that these follow from."""
        room = self.options.max_bytes
        sides: tuple[list[Document], list[Document]] = [], []
        places = list(map(self.split.place, batch))
        for document, place in zip(batch, places, strict=True):
            for part, is_held_out in self.split.parts(document, place):
                if not is_held_out or room is None or len(part.utf8) <= room:
                    sides[is_held_out].append(part)
        for writer, documents in zip((train, held_out), sides, strict=True):
            if encode is None:
                writer.add(documents)
            else:
                samples = [document for document in documents if isinstance(document, Sample)]
                writer.add_targeted(encode(samples))
        return places


def manifest_of(shards: Iterable[Path]) -> Manifest:
    """The sum over shards, by their folders."""
    found = (json.loads((folder / _SHARD).read_text()) for folder in shards)
    return sum(map(Manifest.from_json, found), Manifest())


def write_places(folder: Path, places: Sequence[float]) -> None:
    """Writes `PLACES` for documents with these hashes."""
    (folder / PLACES).write_bytes(np.sort(np.array(places, dtype="<f8")).tobytes())


def _in_words(skipped: Sequence[Unreadable]) -> Iterator[str]:
    faults = [item for item in skipped if item.kind != "empty" and not is_filter(item.kind)]
    yield from map(str, faults[:MAX_EXAMPLES])


def _in_batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.utf8)
        if size >= _ENCODE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
