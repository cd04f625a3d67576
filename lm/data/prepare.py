"""From the run file's `data` section to rows: find the sources, get the tokenizer, tokenize what is not cached.

The cache holds one folder per trained tokenizer and one per tokenized source, each named by a hash of all that decides
its content. Sequence length, weights and the seed of the order are not among that: changing them costs nothing.
Any number of processes may prepare at once; one works and the others wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lm.data.batches import Batches
from lm.data.cache import cached_folder, contents
from lm.data.fingerprint import digest
from lm.data.options import DataOptions, SentencePieceOptions, ValidationOptions
from lm.data.order import SequentialOrder, ShuffledOrder
from lm.data.readers import Document, Unreadable
from lm.data.rows import rows_of
from lm.data.sentencepiece_training import sample_passages, train_sentencepiece
from lm.data.sources import Source, find_source
from lm.data.split import Split
from lm.data.statistics import Statistics, unigram_bits_per_byte
from lm.data.store import StoreWriter, TokenStore
from lm.data.tokenizers import Tokenizer, existing_tokenizer, load_tokenizer
from lm.errors import UserError

# Raised whenever the same input would be stored as other tokens; caches of an older format are then left alone.
_FORMAT = 4
_ENCODE_BYTES = 4_000_000
_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Hears (what is being done, bytes done, bytes in all); all is an estimate, and 0 where progress cannot be told."""


@dataclass(frozen=True, eq=False)
class Validation:
    """The held-out documents of all sources, every target once in `num_rows` rows.

    Attributes:
        batches: rows 0 .. num_rows-1, in stored order.
        num_bytes: UTF-8 bytes of the held-out text; total loss / ln 2 / num_bytes is bits per byte.
        unigram_bits_per_byte: what the training text's token frequencies alone would need for the held-out text.
    """

    batches: Batches
    num_rows: int
    num_bytes: int
    unigram_bits_per_byte: float

    def text(self) -> bytes:
        """The held-out documents' UTF-8, concatenated."""
        return b"".join(store.text.tobytes() for store in self.batches.stores)


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that training needs to know of the data.

    Attributes:
        tokenizer: turns text into the ids of the batches, and back.
        train: the endless training rows, by global row index.
        validation: None where `data.validation.fraction` is 0.
        fingerprint: equal for equal tokens in equal order, wherever the files lie and whenever they were written.
        statistics: counts of the training text.
        validation_statistics: counts of the held-out text; zeros where there is none.
    """

    tokenizer: Tokenizer
    train: Batches
    validation: Validation | None
    fingerprint: str
    statistics: Statistics
    validation_statistics: Statistics


def prepare(options: DataOptions, progress: Progress | None = None) -> Prepared:
    """Finds, tokenizes (or recognises in the cache) and opens the data of a run.

    Raises:
        UserError: naming the key, whatever of the sources, the tokenizer, the split or the cache cannot work.
    """
    sources = [find_source(source, f"data.sources.{index}") for index, source in enumerate(options.sources)]
    report = progress or (lambda stage, done, total: None)
    tokenizer = existing_tokenizer(options.tokenizer) or _trained_tokenizer(options, sources, report)
    folders = [_tokenized(options, source, tokenizer, report) for source in sources]
    train = [TokenStore(folder / "train") for folder in folders]
    held_out = [TokenStore(folder / "validation") for folder in folders]
    for source, store in zip(sources, train, strict=True):
        if store.num_documents == 0:
            raise UserError(
                f"data.validation.fraction: {options.validation.fraction} holds out all of {source.key}, "
                f"'{source.options.path}': its documents are all equal. Add text, or set data.validation.fraction=0."
            )
    rows = [len(rows_of(store, options.sequence_length)) for store in train]
    weights = [source.weight for source in options.sources]
    made_of = [contents(folder) for folder in folders]
    return Prepared(
        tokenizer=tokenizer,
        train=Batches(train, ShuffledOrder(rows, weights, options.seed), options.sequence_length),
        validation=_validation(options, sources, train, held_out),
        fingerprint=digest([_FORMAT, tokenizer.fingerprint, made_of, weights, options.sequence_length, options.seed]),
        statistics=Statistics.of(train),
        validation_statistics=Statistics.of(held_out),
    )


def _validation(
    options: DataOptions,
    sources: list[Source],
    train: list[TokenStore],
    held_out: list[TokenStore],
) -> Validation | None:
    if options.validation.fraction == 0:
        return None
    stores = [store for store in held_out if store.num_documents]
    if not stores:
        if options.validation.max_bytes is None:
            raise UserError(
                "data.validation.fraction: the text is a single character, which cannot be divided; add text, or set "
                "data.validation.fraction=0 to train without validation."
            )
        shortest = min(len(document.utf8) for source in sources for document in source.documents())
        raise UserError(
            f"data.validation.max_bytes: {options.validation.max_bytes} is less than every document takes; set "
            f"{shortest} or more, leave it out, or set data.validation.fraction=0 to train without validation."
        )
    order = SequentialOrder([len(rows_of(store, options.sequence_length)) for store in stores])
    return Validation(
        batches=Batches(stores, order, options.sequence_length),
        num_rows=len(order),
        num_bytes=sum(store.num_bytes for store in stores),
        unigram_bits_per_byte=unigram_bits_per_byte(train, stores),
    )


def _trained_tokenizer(options: DataOptions, sources: list[Source], report: Progress) -> Tokenizer:
    wanted = options.tokenizer
    assert isinstance(wanted, SentencePieceOptions)
    size = sum(source.size for source in sources)

    def documents() -> Iterator[Document]:
        done = 0
        for source in sources:
            split = Split.of(source, options.validation)
            for document in source.documents():
                done += len(document.utf8)
                report("sampling text for the tokenizer", done, max(done, size))
                yield from (part for part, held_out in split.parts(document) if not held_out)

    def build(folder: Path) -> None:
        passages = sample_passages(documents(), wanted.sample_bytes)
        report("training the tokenizer", 0, 0)
        if not passages:
            raise UserError("data.sources: no text is left to train a tokenizer on; lower data.validation.fraction.")
        train_sentencepiece(wanted, passages).save(folder)

    key = digest([_FORMAT, wanted.model_dump(mode="json"), _split(options), [source.made_of() for source in sources]])
    return load_tokenizer(cached_folder(options.cache_dir.expanduser(), f"tokenizer-{key}", build))


def _tokenized(options: DataOptions, source: Source, tokenizer: Tokenizer, report: Progress) -> Path:
    key = digest([_FORMAT, tokenizer.fingerprint, _split(options), source.made_of()])
    build = partial(_tokenize, source=source, tokenizer=tokenizer, validation=options.validation, report=report)
    return cached_folder(options.cache_dir.expanduser(), f"tokens-{key}", build)


def _tokenize(
    folder: Path, source: Source, tokenizer: Tokenizer, validation: ValidationOptions, report: Progress
) -> None:
    skipped: list[Unreadable] = []
    split = Split.of(source, validation)
    room = validation.max_bytes
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
            train.add(kept)
            evaluated.add(held_out)
            report(f"tokenizing {source.options.path}", done, max(done, source.size))
    if source.ignored:
        _log.warning("%s.path: '%s': %s.", source.key, source.options.path, source.ignored_in_words())
    if skipped:
        _log.warning("%s.path: skipped %d unreadable items; the first: %s.", source.key, len(skipped), skipped[0])


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


def _split(options: DataOptions) -> dict[str, object]:
    return options.validation.model_dump(mode="json")
