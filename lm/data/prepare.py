"""From the run file's `data` section to rows: find the sources, get the tokenizer, tokenize what is not cached.

The cache holds one folder per trained tokenizer and one per tokenized source, each named by a hash of all that decides
its content. Weights and the seed of the order are not among that, nor is the sequence length for texts: changing them
costs nothing. Samples are cut to fit a row, so they are made for one sequence length.
Any number of processes may prepare at once; one works and the others wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lm.data.batches import Batches
from lm.data.cache import cached_folder, contents
from lm.data.fingerprint import digest
from lm.data.mix import Mix, SourceRows
from lm.data.options import DataOptions, NumbersOptions, SentencePieceOptions, SourceOptions
from lm.data.order import SequentialOrder
from lm.data.readers import Document
from lm.data.recall import ENDLESS, GeneratedRows
from lm.data.recall_options import GeneratedOptions
from lm.data.rows import Rows, rows_of
from lm.data.sentencepiece_training import sample_passages, train_sentencepiece
from lm.data.sources import Source, find_source
from lm.data.split import Split
from lm.data.statistics import Statistics, unigram_bits_per_byte
from lm.data.store import TokenStore
from lm.data.tokenizers import NumbersTokenizer, Tokenizer, existing_tokenizer, load_tokenizer
from lm.data.tokenizing import FORMAT, Fitted, Progress, Tokenized, tokenized
from lm.errors import UserError


@dataclass(frozen=True, eq=False)
class Validation:
    """The held-out documents of all sources, every target once in `num_rows` rows.

    Attributes:
        batches: rows 0 .. num_rows-1, in stored order.
        stores: the held-out text; none where rows are generated.
        unigram_bits_per_byte: what the training text's token frequencies alone would need for the held-out text.
    """

    batches: Batches
    num_rows: int
    stores: tuple[TokenStore, ...] = ()
    unigram_bits_per_byte: float | None = None

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the held-out text; total loss / ln 2 / num_bytes is bits per byte."""
        return sum(store.num_bytes for store in self.stores)

    def text(self) -> bytes:
        """The UTF-8 that is to be predicted, concatenated: whole texts, and the answers of samples."""
        return b"".join(store.text.tobytes() for store in self.stores)


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that training needs to know of the data.

    Attributes:
        tokenizer: turns text into the ids of the batches, and back.
        train: the endless training rows, by global row index.
        validation: None where nothing is held out.
        fingerprint: equal for equal tokens in equal order, wherever the files lie and whenever they were written.
        statistics: counts of the training text; None where rows are generated.
        validation_statistics: counts of the held-out text; zeros where there is none.
        fitted: what became of samples longer than a row.
        mix: the sources, for rows of other lengths in another mix.
    """

    tokenizer: Tokenizer
    train: Batches
    validation: Validation | None
    fingerprint: str
    statistics: Statistics | None
    validation_statistics: Statistics
    fitted: Fitted
    mix: Mix

    def stage(self, index: int, sequence_length: int, weights: Sequence[float] | None = None) -> Batches:
        """The training rows of stage `index` of a run, in rows of another length and by other weights, one per source.

        Every stage has an order of its own, from (data.seed, index); stage 0 with the run's own length and weights is
        `train`. Weights left out are those of the run; 0 leaves a source out.

        Raises:
            UserError: weights that do not fit the sources, or samples that are cut for rows of another length.
        """
        return self.mix.batches(index, sequence_length, weights)


def prepare(options: DataOptions, progress: Progress | None = None) -> Prepared:
    """Finds, tokenizes (or recognises in the cache) and opens the data of a run.

    Raises:
        UserError: naming the key, whatever of the sources, the tokenizer, the split or the cache cannot work.
    """
    if isinstance(options.tokenizer, NumbersOptions):
        return _generated(options, options.tokenizer)
    texts = [source for source in options.sources if not isinstance(source, GeneratedOptions)]
    sources = [find_source(source, f"data.sources.{index}") for index, source in enumerate(texts)]
    report = progress or (lambda stage, done, total: None)
    tokenizer = existing_tokenizer(options.tokenizer) or _trained_tokenizer(options, sources, report)
    found = [tokenized(options, source, tokenizer, report) for source in sources]
    for source, made in zip(sources, found, strict=True):
        if not made.train.num_documents:
            raise UserError(_nothing_left(options, source, made.fitted))
    train, held_out = [made.train for made in found], [made.held_out for made in found]
    mix = Mix(
        [
            SourceRows(
                partial(rows_of, made.train),
                source.options.weight,
                source.options.max_epochs,
                None if isinstance(source.options, SourceOptions) else options.sequence_length,
            )
            for source, made in zip(sources, found, strict=True)
        ],
        options.sequence_length,
        options.seed,
    )
    weights = [source.weight for source in options.sources]
    made_of = [contents(made.folder) for made in found]
    return Prepared(
        tokenizer=tokenizer,
        train=mix.batches(),
        validation=_validation(options, sources, found),
        fingerprint=digest([FORMAT, tokenizer.fingerprint, made_of, weights, options.sequence_length, options.seed]),
        statistics=Statistics.of(train),
        validation_statistics=Statistics.of(held_out),
        fitted=sum((made.fitted for made in found), Fitted()),
        mix=mix,
    )


def _generated(options: DataOptions, numbers: NumbersOptions) -> Prepared:
    """Rows that are made when they are read. Those held out come from a stream of their own."""
    sources = [source for source in options.sources if isinstance(source, GeneratedOptions)]

    def rows(source: GeneratedOptions, seed: int, stream: int, count: int) -> Callable[[int], Rows]:
        return lambda length: GeneratedRows(source, numbers.size, length, seed, stream, count)

    train = [
        SourceRows(rows(source, options.seed, 2 * number, ENDLESS), source.weight, only_length=options.sequence_length)
        for number, source in enumerate(sources)
    ]
    held_out = [
        rows(source, options.validation.seed, 2 * number + 1, source.held_out_rows)(options.sequence_length)
        for number, source in enumerate(sources)
        if source.held_out_rows
    ]
    mix = Mix(train, options.sequence_length, options.seed)
    order = SequentialOrder([len(source) for source in held_out])
    made_of = [source.model_dump(mode="json", exclude={"held_out_rows"}) for source in sources]
    return Prepared(
        tokenizer=NumbersTokenizer(numbers.size),
        train=mix.batches(),
        validation=Validation(Batches(held_out, order), len(order)) if held_out else None,
        fingerprint=digest([FORMAT, numbers.size, made_of, options.sequence_length, options.seed]),
        statistics=None,
        validation_statistics=Statistics.of([]),
        fitted=Fitted(),
        mix=mix,
    )


def _nothing_left(options: DataOptions, source: Source, fitted: Fitted) -> str:
    named = f"{source.key}, '{source.options.path}'"
    if fitted.dropped:
        return (
            f"data.sequence_length: {options.sequence_length} is too short for {named}: every sample that is to be "
            "trained on has longer answers. Raise it."
        )
    return (
        f"data.validation.fraction: {options.validation.fraction} holds out all of {named}: its documents are all "
        "equal. Add text, or set data.validation.fraction=0."
    )


def _validation(options: DataOptions, sources: list[Source], found: list[Tokenized]) -> Validation | None:
    if options.validation.fraction == 0:
        return None
    stores = [made.held_out for made in found if made.held_out.num_documents]
    if not stores:
        if any(made.fitted.dropped for made in found):
            raise UserError(
                f"data.sequence_length: {options.sequence_length} is too short for the held-out samples, whose answers "
                "are longer. Raise it, set data.validation.seed to hold out others, or data.validation.fraction=0."
            )
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
    rows = [rows_of(store, options.sequence_length) for store in stores]
    order = SequentialOrder([len(source) for source in rows])
    return Validation(
        batches=Batches(rows, order),
        num_rows=len(order),
        stores=tuple(stores),
        unigram_bits_per_byte=unigram_bits_per_byte([made.train for made in found], stores),
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

    decisive = [FORMAT, wanted.model_dump(mode="json"), options.validation.model_dump(mode="json")]
    key = digest([*decisive, *(source.made_of() for source in sources)])
    return load_tokenizer(cached_folder(options.cache_dir.expanduser(), f"tokenizer-{key}", build))
