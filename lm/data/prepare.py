"""From the run file's `data` section to rows: find the sources, get the tokenizer, tokenize what is not cached.

The cache holds one folder per trained tokenizer and one per tokenized source, each named by a hash of all that decides
its content. Weights and the seed of the order are not among that, nor is the sequence length for texts: changing them
costs nothing. Samples are cut to fit a row, so they are made for one sequence length.
Any number of processes may prepare at once; one works and the others wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm.data.batches import Batches
from lm.data.cache import contents
from lm.data.fingerprint import digest
from lm.data.manifest import Manifest
from lm.data.mix import Mix, SourceRows
from lm.data.options import DataOptions, FileSourceOptions, NumbersOptions
from lm.data.order import SequentialOrder
from lm.data.recall import ENDLESS, GeneratedRows
from lm.data.recall_options import GeneratedOptions
from lm.data.rows import Rows, rows_of
from lm.data.source_rows import source_rows
from lm.data.sources import Source, find_source
from lm.data.statistics import Statistics, unigram_bits_per_byte
from lm.data.store import CONTENT, TokenStore
from lm.data.tokenizer_of import tokenizer_of
from lm.data.tokenizers import NumbersTokenizer, Tokenizer
from lm.data.tokenizing import FORMAT, Progress, Tokenized, make_shards, tokenized
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


@dataclass(frozen=True)
class Fitted:
    """Samples longer than a row: of how many the prompts were cut, and how many were dropped."""

    cut: int = 0
    dropped: int = 0


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that training needs to know of the data.

    Attributes:
        tokenizer: turns text into the ids of the batches, and back.
        train: the endless training rows, by global row index.
        validation: None where nothing is held out.
        fingerprint: equal for equal tokens in equal order, wherever the files lie and whenever they were written.
        parts: fingerprints of the tokenizer and of each source's tokens, by key, to say what of the data has changed.
        statistics: counts of the training text; None where rows are generated.
        validation_statistics: counts of the held-out text; zeros where there is none.
        manifests: what is in the tokens of each source; none where rows are generated.
        mix: the sources, for rows of other lengths in another mix.
    """

    tokenizer: Tokenizer
    train: Batches
    validation: Validation | None
    fingerprint: str
    parts: Mapping[str, str]
    statistics: Statistics | None
    validation_statistics: Statistics
    manifests: tuple[Manifest, ...]
    mix: Mix

    @property
    def fitted(self) -> Fitted:
        """What became of samples longer than a row."""
        return Fitted(sum(made.cut for made in self.manifests), sum(made.dropped for made in self.manifests))

    def stage(self, index: int, sequence_length: int, weights: Sequence[float] | None = None) -> Batches:
        """The training rows of stage `index` of a run, in rows of another length and by other weights, one per source.

        Every stage has an order of its own, from (data.seed, index); stage 0 with the run's own length and weights is
        `train`. Weights left out are those of the run; 0 leaves a source out.

        Raises:
            UserError: weights that do not fit the sources, or samples that are cut for rows of another length.
        """
        return self.mix.batches(index, sequence_length, weights)


def prepare(options: DataOptions, progress: Progress | None = None, processes: int | None = None) -> Prepared:
    """Finds, tokenizes (or recognises in the cache) and opens the data of a run.

    processes: that tokenize; one for each core if left out.

    Raises:
        UserError: naming the key, whatever of the sources, the tokenizer, the split or the cache cannot work.
    """
    if isinstance(options.tokenizer, NumbersOptions):
        return _generated(options, options.tokenizer)
    sources = _sources(options)
    report = progress or (lambda stage, done, total: None)
    tokenizer = tokenizer_of(options, sources, report)
    found = [tokenized(options, source, tokenizer, report, processes) for source in sources]
    for source, made in zip(sources, found, strict=True):
        if not made.shards:
            raise UserError(_nothing_left(options, source, made.manifest))
    mix = Mix(
        [source_rows(options, source, made, processes) for source, made in zip(sources, found, strict=True)],
        options.sequence_length,
        options.seed,
    )
    weights = [source.weight for source in options.sources]
    chosen = [source.options.model_dump(include={"min_tokens", "longest"}) for source in sources]
    made_of = [[contents(store.folder.parent, CONTENT) for store in made.shards] for made in found]
    held_out = [made.held_out for made in found]
    held_of = [contents(store.folder.parent, CONTENT) for store in held_out]
    decisive = [FORMAT, tokenizer.fingerprint, made_of, held_of, weights, options.sequence_length, options.seed]
    decisive += [options.packing, chosen]
    manifest = sum((made.manifest for made in found), Manifest())
    return Prepared(
        tokenizer=tokenizer,
        train=mix.batches(),
        validation=_validation(options, sources, found),
        fingerprint=digest(decisive),
        parts={
            "data.tokenizer": tokenizer.fingerprint,
            **_by_key(made_of),
            "data.validation": digest(held_of),
        },
        statistics=Statistics.of_training(manifest),
        validation_statistics=Statistics.of(held_out),
        manifests=tuple(made.manifest for made in found),
        mix=mix,
    )


def prepare_node(
    options: DataOptions, node: tuple[int, int], progress: Progress | None = None, processes: int | None = None
) -> list[tuple[str, int, int]]:
    """Makes the shards that fall to node k of n, node = (k, n) with k from 1; `prepare` finds them when all are there.

    Nodes share `data.cache_dir`, and see the sources under the same paths.
    Returns for each source its name, how many of its shards are there, and how many there will be.
    """
    report = progress or (lambda stage, done, total: None)
    sources = _sources(options)
    tokenizer = tokenizer_of(options, sources, report)
    return [
        (source.options.path, *make_shards(options, source, tokenizer, report, processes, node)) for source in sources
    ]


def _sources(options: DataOptions) -> list[Source]:
    texts = [source for source in options.sources if not isinstance(source, GeneratedOptions)]
    return [_source(options, source, f"data.sources.{index}") for index, source in enumerate(texts)]


def _source(options: DataOptions, source: FileSourceOptions, key: str) -> Source:
    if source.hub is None:
        return find_source(source, key, options.shard_bytes)
    from lm.data.hub import HubSource  # the Hub's libraries come with it

    return HubSource(key, source, (), False, (), options.shard_bytes, options.cache_dir)


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
        parts={"data.tokenizer": digest(numbers.size), **_by_key(made_of)},
        statistics=None,
        validation_statistics=Statistics.of([]),
        manifests=(),
        mix=mix,
    )


def _by_key(made_of: Sequence[Any]) -> dict[str, str]:
    return {f"data.sources.{index}": digest(content) for index, content in enumerate(made_of)}


def _nothing_left(options: DataOptions, source: Source, fitted: Manifest) -> str:
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
        if any(made.manifest.dropped for made in found):
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
        unigram_bits_per_byte=unigram_bits_per_byte([made.train_counts for made in found], stores),
    )
