"""One source, tokenized shard by shard: two stores each, what is trained on and what is held out, in the cache.

A source has a folder named by all that decides its tokens. Every shard in it is built atomically, by whichever process
of whichever node comes first, so what was finished before a kill stays, and nodes that share the folder share the work.
When all shards are there they are assembled: the held-out documents of all of them, and what is counted over all.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.apart import Placing, agreeing, unplaced
from lm.data.cache import cached_folder, contents, damage
from lm.data.duplicates import Hashing, write_duplicates
from lm.data.encoding import SampleEncoder
from lm.data.fingerprint import digest
from lm.data.manifest import Manifest
from lm.data.options import DataOptions, SourceOptions
from lm.data.shard import Tokenizing, manifest_of
from lm.data.sources import Source
from lm.data.split import Split
from lm.data.store import CONTENT, StoreWriter, TokenStore
from lm.data.templates import template_of
from lm.data.tokenizers import Tokenizer
from lm.data.workers import Crew

# Raised whenever the same input would be stored as other tokens; caches of an older format are then left alone. Not for
# the byte-order marks that texts began with once: a few characters are not worth days of tokenizing again.
FORMAT = 5
_COUNTS = "train_counts.npy"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Shards:
    """The first shards of a source as tokens.

    Attributes:
        folder: holds them.
        stores: their training documents; none is empty.
        manifest: what is in all of them.
        count, total: how many shards these are, and how many the source has.
    """

    folder: Path
    stores: tuple[TokenStore, ...]
    manifest: Manifest
    count: int
    total: int

    def contents(self) -> list[dict[str, str]]:
        """Checksums of what is trained on, shard by shard: equal for equal tokens."""
        return [contents(store.folder.parent, CONTENT) for store in self.stores]


@dataclass(frozen=True, eq=False)
class Tokenized(Shards):
    """The same, with what is put together from them.

    Attributes:
        held_out: the documents that are held out.
        train_counts: [V] int64, how often each token is predicted in `stores`.
        shortest: bytes of the source's shortest document, where every one is longer than may be held out.
    """

    held_out: TokenStore
    train_counts: np.ndarray
    shortest: int | None


def each_once(found: Iterable[Tokenized]) -> list[Tokenized]:
    """Without those whose tokens are another's: a path that is named twice is read twice and held out once."""
    return list({made.held_out.folder: made for made in found}.values())


@dataclass(frozen=True, eq=False)
class SourceWork:
    """How the shards of one source of a run are made.

    Attributes:
        own: by the rule of the source alone.
        run: the rule of all sources together, see `lm.data.apart`.
    """

    own: Tokenizing
    run: Split


def work_on(options: DataOptions, sources: Sequence[Source], tokenizer: Tokenizer, crew: Crew) -> list[SourceWork]:
    """What is to be done for each of a run's sources, none of which is tokenized yet.

    Raises:
        UserError: naming the key, whatever of a source, the split or the cache cannot work.
    """
    works = [_work(options, source, tokenizer, crew, sources[:index]) for index, source in enumerate(sources)]
    run = Split.joined(work.split for work in works)
    return [SourceWork(work, run) for work in works]


def first_shards(work: SourceWork, crew: Crew, count: int | None) -> Shards:
    """The first `count` shards of a source (None: all), made unless they are in the cache.

    Raises:
        UserError: naming the key, whatever of the source or the cache cannot work.
    """
    numbers = range(len(work.own.source.shards))[:count]
    made, agreed = _made(work, numbers, crew)
    return _opened(agreed, numbers, made)


def tokenized(options: DataOptions, work: SourceWork, crew: Crew) -> Tokenized:
    """The shards that the options ask for, with what is put together from them; see `first_shards`."""
    numbers = range(len(work.own.source.shards))[: options.shards]
    made, agreed = _made(work, numbers, crew)
    shards = _opened(agreed, numbers, made)
    name = "assembled" if shards.count == shards.total else f"assembled-{shards.count}"
    name += f"-{digest(sorted(agreed.names.items()))}" if agreed.names else ""
    folders = [agreed.folder / agreed.name(number) for number in numbers]
    folder = cached_folder(
        shards.folder, name, partial(_assemble, options=options, tokenizer=agreed.tokenizer, shards=folders)
    )
    return Tokenized(
        **vars(shards),
        held_out=TokenStore(folder / "validation"),
        train_counts=np.load(folder / _COUNTS),
        shortest=work.own.split.shortest,
    )


def make_shards(options: DataOptions, work: SourceWork, crew: Crew) -> tuple[int, int]:
    """Makes the shards that fall to the crew's node; see `tokenized`.

    Returns how many of the source's shards are there, and how many there will be.
    """
    own, (number, nodes) = work.own, crew.node
    total = len(range(len(own.source.shards))[: options.shards])
    _make("tokenizing", own, range(number - 1, total, nodes), crew)
    return sum(damage(own.folder / own.name(shard)) is None for shard in range(total)), total


def _made(work: SourceWork, numbers: Sequence[int], crew: Crew) -> tuple[bool, Tokenizing]:
    """Makes these shards unless they are there; whether there were any to make, and by which rule they are made."""
    made = _make("tokenizing", work.own, numbers, crew)
    placing, missing = unplaced(work.own, work.run, numbers)
    _make("comparing", placing, missing, crew)
    agreed = agreeing(work.own, work.run, numbers)
    return _make("tokenizing", agreed, numbers, crew) or made, agreed


def _opened(work: Tokenizing, numbers: Sequence[int], made: bool) -> Shards:
    source, folders = work.source, [work.folder / work.name(number) for number in numbers]
    manifest = manifest_of(folders)
    whole = len(numbers) == len(source.shards)
    if whole and not manifest.documents + manifest.held_out + manifest.dropped + manifest.duplicates:
        raise source.nothing(manifest.skipped, *manifest.examples)
    if made:
        _warn(source, manifest)
    stores = (TokenStore(folder / "train") for folder in folders)
    kept = tuple(store for store in stores if store.num_documents)
    return Shards(work.folder, kept, manifest, len(numbers), len(source.shards))


def _work(
    options: DataOptions, source: Source, tokenizer: Tokenizer, crew: Crew, before: Sequence[Source]
) -> Tokenizing:
    """before: the sources whose texts it may be asked not to repeat."""
    encoder = _encoder(options, source, tokenizer)
    compared = _compared(options, source, before)
    made_of = [FORMAT, tokenizer.fingerprint, options.validation.model_dump(mode="json"), source.made_of()]
    made_of += [] if encoder is None else [encoder.fingerprint]
    made_of += [hashing.folder.name for hashing in compared[:-1]]
    folder = options.cache_dir / f"tokens-{digest(made_of)}"

    def write_split(target: Path) -> None:
        (target / "split.json").write_text(json.dumps(Split.of(source, options.validation).to_json()))

    found = json.loads((cached_folder(folder, "split", write_split) / "split.json").read_text())
    split = Split.from_json(found, options.validation, source)
    duplicates = _duplicates(folder, compared, crew) if compared else None
    return Tokenizing(folder, source, tokenizer, encoder, split, duplicates)


def _compared(options: DataOptions, source: Source, before: Sequence[Source]) -> list[Hashing]:
    """What a source's texts are compared with for duplicates, itself last; nothing where equal texts are kept."""
    if not isinstance(source.options, SourceOptions) or not source.options.drop_duplicates:
        return []
    cache = options.cache_dir
    own = Hashing(cache, source)
    if source.options.drop_duplicates != "across":
        return [own]
    others = [Hashing(cache, other) for other in before if isinstance(other.options, SourceOptions)]
    return [*(other for other in others if other.folder != own.folder), own]


def _duplicates(folder: Path, compared: Sequence[Hashing], crew: Crew) -> Path:
    """Which documents of the last source equal an earlier one, found unless that is in the cache."""
    if damage(folder / "duplicates") is not None:
        number, nodes = crew.node
        for hashing in compared:
            # All are needed by every node, so each begins elsewhere and finds in the end what the others made.
            shards = sorted(range(len(hashing.source.shards)), key=lambda shard: (shard + 1 - number) % nodes)
            _make("hashing", hashing, shards, crew)
    *before, own = compared
    return cached_folder(folder, "duplicates", partial(write_duplicates, before=before, own=own))


def _encoder(options: DataOptions, source: Source, tokenizer: Tokenizer) -> SampleEncoder | None:
    """What encodes the samples of a source; None for one of texts."""
    if isinstance(source.options, SourceOptions):
        return None
    template = template_of(source.options, tokenizer, source.key)
    return SampleEncoder(template, source.options, options.sequence_length, source.key)


def _make(what: str, work: Tokenizing | Hashing | Placing, numbers: Sequence[int], crew: Crew) -> bool:
    """Makes those of these shards that are not there; whether there were any."""
    missing = [number for number in numbers if damage(work.folder / work.name(number)) is not None]
    if missing:
        _in_processes(what, work, missing, crew)
    return bool(missing)


def _in_processes(what: str, work: Tokenizing | Hashing | Placing, numbers: Sequence[int], crew: Crew) -> None:
    source = work.source
    source.open()
    sizes = [sum(part.size for part in shard) for shard in source.shards]
    finished = sum(sizes) - sum(sizes[number] for number in numbers)
    under_way: Counter[int] = Counter()
    documents = tokens = 0
    began = time.monotonic()

    def say() -> None:
        seconds = max(time.monotonic() - began, 1e-3)
        pace = f": {documents / seconds:,.0f} documents/s, {tokens / seconds:,.0f} tokens/s" if tokens else ""
        done = finished + sum(min(read, sizes[number]) for number, read in under_way.items())
        crew.report(f"{what} {source.options.path}{pace}", done, sum(sizes))

    def heard(number: int, figures: tuple[int, ...]) -> None:
        nonlocal documents, tokens
        under_way[number] += figures[0]
        documents, tokens = documents + figures[1], tokens + figures[2]
        say()

    say()
    for number, _ in crew.run(work, numbers, heard):
        under_way.pop(number, None)
        finished += sizes[number]
    say()


def _assemble(folder: Path, options: DataOptions, tokenizer: Tokenizer, shards: Sequence[Path]) -> None:
    """Writes the held-out documents of the shards, within their bound, and the counts of all that is trained on."""
    room = options.validation.max_bytes
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    with StoreWriter(folder / "validation", tokenizer, keep_text=True) as writer:
        for shard in shards:
            counts += TokenStore(shard / "train").counts
            kept = []
            for document in TokenStore(shard / "held_out").documents():
                if room is None or len(document.utf8) <= room:
                    room = None if room is None else room - len(document.utf8)
                    kept.append(document)
            writer.add_stored(kept)
    np.save(folder / _COUNTS, counts)
    summed = {"shards": len(shards), "tokenizer": _policy(tokenizer)} | manifest_of(shards).to_json()
    (folder / "summary.json").write_text(json.dumps(summed, indent=1) + "\n")


def _policy(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a tokenizer is and does to a document, for the record: the ids that begin and end it among that."""
    return {
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "document_begins_with": tokenizer.bos_id,
        "document_ends_with": tokenizer.eos_id if tokenizer.ends_texts else None,
        "unknown": tokenizer.unk_id,
    }


def _warn(source: Source, manifest: Manifest) -> None:
    if source.ignored:
        _log.warning("%s.path: '%s': %s.", source.key, source.options.path, source.ignored_in_words())
    if manifest.unreadable:
        first = manifest.examples[0]
        _log.warning("%s.path: skipped %d unreadable items; the first: %s.", source.key, manifest.unreadable, first)
