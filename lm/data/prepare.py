"""From the run file's `data` section to rows: find the sources, get the tokenizer, tokenize what is not cached.

The cache holds one folder per trained tokenizer and one per tokenized source, each named by a hash of all that decides
its content. Weights and the seed of the order are not among that, nor is the sequence length for texts: changing them
costs nothing. Samples are cut to fit a row, so they are made for one sequence length.
Any number of processes may prepare at once; one works and the others wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lm.data.batches import Batches
from lm.data.cache import contents
from lm.data.fingerprint import digest
from lm.data.manifest import Manifest, counted
from lm.data.mix import Mix, ShardCount, SourceRows, shards_read
from lm.data.options import DataOptions, FileSourceOptions
from lm.data.order import SequentialOrder
from lm.data.recall import ENDLESS, GeneratedRows
from lm.data.recall_options import GeneratedOptions
from lm.data.rows import Rows
from lm.data.source_rows import content_of, over_shards, require_text, source_rows
from lm.data.sources import Source, find_source
from lm.data.store import CONTENT, TokenStore
from lm.data.tokenizer_of import tokenizer_of
from lm.data.tokenizer_options import NumbersOptions
from lm.data.tokenizers import NumbersTokenizer, Tokenizer
from lm.data.tokenizing import FORMAT, Shards, Tokenized, each_once, first_shards, make_shards, tokenized, work_on
from lm.data.validation import Validation, held_out_of, validation_of
from lm.data.workers import Crew, Progress


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that training needs to know of the data.

    Attributes:
        tokenizer: turns text into the ids of the batches, and back.
        train: the endless training rows, by global row index.
        validation: None where nothing is held out.
        fingerprint: equal for equal tokens in equal order, wherever the files lie and whenever they were written.
        parts: fingerprints of the tokenizer and of each source's tokens, by key, to say what of the data has changed.
        manifests: what is in the tokens of each source; none where rows are generated.
        statistics: their sum, tokens that several sources read counted once; None where rows are generated.
        validation_statistics: counts of the held-out text; zeros where there is none.
        mix: the sources, for rows of other lengths in another mix.
        content: for each source that is read, what decides the rows of its first so many shards, None for all.
    """

    tokenizer: Tokenizer
    train: Batches
    validation: Validation | None
    fingerprint: str
    parts: Mapping[str, str]
    manifests: tuple[Manifest, ...]
    statistics: Manifest | None
    validation_statistics: Manifest
    mix: Mix
    content: tuple[Callable[[int | None], Any], ...] = ()

    def stage(
        self,
        index: int,
        sequence_length: int,
        weights: Sequence[float] | None = None,
        shards: ShardCount = None,
    ) -> Batches:
        """The training rows of stage `index` of a run, in rows of another length and by other weights, one per source.

        Every stage has an order of its own, from (data.seed, index); stage 0 with the run's own length, weights and
        shards is `train`. What is left out is the run's own; a weight of 0 leaves a source out. Shards that are not in
        the cache are made.

        Raises:
            UserError: weights that do not fit the sources, or samples that are cut for rows of another length.
        """
        return self.mix.batches(index, sequence_length, weights, shards)

    def parts_of(self, shards: ShardCount) -> dict[str, str]:
        """Fingerprints of what a stage reads that has shards of its own, as `parts` has them."""
        if shards is None:
            return {}
        return {
            f"data.sources.{index} ({shards} shards)": digest(content(shards_read(None, shards)))
            for index, content in enumerate(self.content)
        }


def prepare(options: DataOptions, progress: Progress | None = None, processes: int | None = None) -> Prepared:
    """Finds, tokenizes (or recognises in the cache) and opens the data of a run.

    processes: that tokenize; one for each core if left out.

    Raises:
        UserError: naming the key, whatever of the sources, the tokenizer, the split or the cache cannot work.
    """
    if isinstance(options.tokenizer, NumbersOptions):
        return _generated(options, options.tokenizer)
    sources = _sources(options)
    crew = Crew(progress or (lambda stage, done, total: None), processes)
    tokenizer = tokenizer_of(options, sources, crew)
    works = work_on(options, sources, tokenizer, crew)
    found = [tokenized(options, work, crew) for work in works]
    for source, made in zip(sources, found, strict=True):
        require_text(options, source, made, options.shards)
        source.hold()

    def shards_of(index: int) -> Callable[[int | None], Shards]:
        @cache
        def made(count: int | None) -> Shards:
            if count == options.shards:
                return found[index]
            return first_shards(works[index], crew, count)

        return made

    def content(made: Callable[[int | None], Shards]) -> Callable[[int | None], Any]:
        return lambda count: content_of(options, made(count))

    shards = tuple(map(shards_of, range(len(sources))))
    mix = Mix(
        [source_rows(options, source, made, crew) for source, made in zip(sources, shards, strict=True)],
        options.sequence_length,
        options.seed,
        options.shards,
    )
    held_out = held_out_of(options, found, tokenizer)
    fingerprint, parts = _fingerprints(options, sources, tokenizer, found, held_out)
    return Prepared(
        tokenizer=tokenizer,
        train=mix.batches(),
        validation=validation_of(options, found, held_out),
        fingerprint=fingerprint,
        parts=parts,
        manifests=tuple(made.manifest for made in found),
        statistics=sum((made.manifest for made in each_once(found)), Manifest()),
        validation_statistics=sum((counted(store, tokenizer) for store in held_out), Manifest()),
        mix=mix,
        content=tuple(map(content, shards)),
    )


def _fingerprints(
    options: DataOptions,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    found: Sequence[Tokenized],
    held_out: Sequence[TokenStore],
) -> tuple[str, dict[str, str]]:
    """The fingerprint of prepared data, and those of its parts, as `Prepared` has them."""
    made_of = [content_of(options, made) for made in found]
    over = [over_shards(options, made) for made in found]
    held_of: list[Any] = [contents(made.held_out.folder.parent, CONTENT) for made in found]
    whole = [made.held_out.folder for made in each_once(found) if made.held_out.num_documents]
    if [store.folder for store in held_out] != whole:
        held_of.append([store.num_documents for store in held_out])
    parts = {
        "data.tokenizer": tokenizer.fingerprint,
        **_by_key([made.contents() for made in found]),
        "data.validation": digest(held_of),
        **({"data.packing": digest(over)} if any(over) else {}),
    }
    return digest([FORMAT, tokenizer.fingerprint, made_of, held_of, *_order(options, sources)]), parts


def prepare_node(
    options: DataOptions, node: tuple[int, int], progress: Progress | None = None, processes: int | None = None
) -> list[tuple[str, int, int]]:
    """Makes the shards that fall to node k of n, node = (k, n) with k from 1; `prepare` finds them when all are there.

    Nodes share `data.cache_dir`, and see the sources under the same paths.
    Returns for each source its name, how many of its shards are there, and how many there will be.
    """
    crew = Crew(progress or (lambda stage, done, total: None), processes, node)
    sources = _sources(options)
    tokenizer = tokenizer_of(options, sources, crew)
    works = work_on(options, sources, tokenizer, crew)
    return [(work.own.source.options.path, *make_shards(options, work, crew)) for work in works]


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
    sources = options.generated

    def rows(source: GeneratedOptions, seed: int, stream: int, count: int) -> Callable[..., Rows]:
        return lambda length, shards=None: GeneratedRows(source, numbers.size, length, seed, stream, count)

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
        manifests=(),
        statistics=None,
        validation_statistics=Manifest(),
        mix=mix,
    )


def _order(options: DataOptions, sources: Sequence[Source]) -> list[Any]:
    """What decides, beside the tokens, which rows there are and how they follow each other."""
    weights = [source.weight for source in options.sources]
    chosen = [source.options.model_dump(include={"min_tokens", "longest"}) for source in sources]
    caps = [source.options.max_epochs for source in sources]
    order = [weights, options.sequence_length, options.seed, options.packing, chosen]
    return [*order, caps] if any(caps) else order


def _by_key(made_of: Sequence[Any]) -> dict[str, str]:
    return {f"data.sources.{index}": digest(content) for index, content in enumerate(made_of)}
