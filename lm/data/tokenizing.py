"""One source, tokenized: two stores, what is trained on and what is held out, in a folder of the cache."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from lm.data.cache import cached_folder
from lm.data.encoding import SampleEncoder
from lm.data.fingerprint import digest
from lm.data.options import DataOptions, SourceOptions, ValidationOptions
from lm.data.readers import Document, Unreadable
from lm.data.samples import Sample
from lm.data.sources import Source
from lm.data.split import Split
from lm.data.store import StoreWriter, TokenStore
from lm.data.templates import template_of
from lm.data.tokenizers import Tokenizer

# Raised whenever the same input would be stored as other tokens; caches of an older format are then left alone.
FORMAT = 4
_ENCODE_BYTES = 4_000_000
_FITTED = "fitted.json"
_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Hears (what is being done, bytes done, bytes in all); all is an estimate, and 0 where progress cannot be told."""


@dataclass(frozen=True)
class Fitted:
    """Samples longer than a row: of how many the prompts were cut, and how many were dropped."""

    cut: int = 0
    dropped: int = 0

    def __add__(self, other: Fitted) -> Fitted:
        return Fitted(self.cut + other.cut, self.dropped + other.dropped)


@dataclass(frozen=True, eq=False)
class Tokenized:
    """A source as tokens: the stores in its folder of the cache. fitted: counted over both."""

    folder: Path
    train: TokenStore
    held_out: TokenStore
    fitted: Fitted


def tokenized(options: DataOptions, source: Source, tokenizer: Tokenizer, report: Progress) -> Tokenized:
    """A source's stores, made unless they are in the cache.

    Raises:
        UserError: naming the key, whatever of the source, the split or the cache cannot work.
    """
    encoder = _encoder(options, source, tokenizer)
    made_of = [FORMAT, tokenizer.fingerprint, options.validation.model_dump(mode="json"), source.made_of()]
    key = digest(made_of if encoder is None else [*made_of, encoder.fingerprint])
    build = partial(
        _build, source=source, tokenizer=tokenizer, encoder=encoder, options=options.validation, report=report
    )
    folder = cached_folder(options.cache_dir.expanduser(), f"tokens-{key}", build)
    fitted = Fitted(**json.loads((folder / _FITTED).read_text()))
    return Tokenized(folder, TokenStore(folder / "train"), TokenStore(folder / "validation"), fitted)


def _encoder(options: DataOptions, source: Source, tokenizer: Tokenizer) -> SampleEncoder | None:
    """What encodes the samples of a source; None for one of texts."""
    if isinstance(source.options, SourceOptions):
        return None
    template = template_of(source.options, tokenizer, source.key)
    return SampleEncoder(template, source.options, options.sequence_length)


def _build(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    encoder: SampleEncoder | None,
    options: ValidationOptions,
    report: Progress,
) -> None:
    skipped: list[Unreadable] = []
    split = Split.of(source, options)
    room = options.max_bytes
    done = 0
    with (
        StoreWriter(folder / "train", tokenizer, keep_text=False) as train,
        StoreWriter(folder / "validation", tokenizer, keep_text=True) as evaluated,
    ):
        for batch in _in_batches(source.documents(skipped.append)):
            kept: list[Document] = []
            held_out: list[Document] = []
            for document in batch:
                done += len(document.utf8)
                for part, is_held_out in split.parts(document):
                    if not is_held_out:
                        kept.append(part)
                    elif room is None or len(part.utf8) <= room:
                        room = None if room is None else room - len(part.utf8)
                        held_out.append(part)
            _add(train, kept, encoder)
            _add(evaluated, held_out, encoder)
            report(f"tokenizing {source.options.path}", done, max(done, source.size))
    fitted = Fitted() if encoder is None else Fitted(encoder.cut, encoder.dropped)
    (folder / _FITTED).write_text(json.dumps(asdict(fitted)))
    if source.ignored:
        _log.warning("%s.path: '%s': %s.", source.key, source.options.path, source.ignored_in_words())
    if skipped:
        _log.warning("%s.path: skipped %d unreadable items; the first: %s.", source.key, len(skipped), skipped[0])


def _add(store: StoreWriter, documents: list[Document], encoder: SampleEncoder | None) -> None:
    if encoder is None:
        store.add(documents)
    else:
        store.add_targeted(encoder([document for document in documents if isinstance(document, Sample)]))


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
