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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.cache import cached_folder, damage
from lm.data.duplicates import Hashing, find_duplicates
from lm.data.encoding import SampleEncoder
from lm.data.fingerprint import digest
from lm.data.manifest import Manifest
from lm.data.options import DataOptions, SourceOptions
from lm.data.shard import Tokenizing, manifest_of, shard_name
from lm.data.sources import Source
from lm.data.split import Split
from lm.data.store import StoreWriter, TokenStore
from lm.data.templates import template_of
from lm.data.threads import cpu_cores
from lm.data.tokenizers import Tokenizer
from lm.data.workers import run_jobs

# Raised whenever the same input would be stored as other tokens; caches of an older format are then left alone.
FORMAT = 5
_COUNTS = "train_counts.npy"
_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Hears (what is being done, bytes done, bytes in all); all is an estimate, and 0 where progress cannot be told."""


@dataclass(frozen=True, eq=False)
class Tokenized:
    """A source as tokens.

    Attributes:
        folder: holds the shards.
        shards: their training documents; none is empty.
        held_out: the documents that are held out.
        train_counts: [V] int64, how often each token is predicted in `shards`.
        manifest: what is in all of them.
    """

    folder: Path
    shards: tuple[TokenStore, ...]
    held_out: TokenStore
    train_counts: np.ndarray
    manifest: Manifest


def tokenized(
    options: DataOptions, source: Source, tokenizer: Tokenizer, report: Progress, processes: int | None = None
) -> Tokenized:
    """A source's shards, made unless they are in the cache, by so many processes (None: one for each core).

    Raises:
        UserError: naming the key, whatever of the source, the split or the cache cannot work.
    """
    work = _work(options, source, tokenizer, report, processes)
    numbers = range(len(source.shards))[: options.shards]
    made = _make(work, numbers, report, processes)
    name = "assembled" if len(numbers) == len(source.shards) else f"assembled-{len(numbers)}"
    assembled = cached_folder(work.folder, name, partial(_assemble, work=work, numbers=numbers))
    manifest = manifest_of(work.folder, numbers)
    if not manifest.documents + manifest.held_out + manifest.dropped:
        raise source.nothing(manifest.examples[0] if manifest.examples else None)
    if made:
        _warn(source, manifest)
    stores = [TokenStore(work.folder / shard_name(number) / "train") for number in numbers]
    return Tokenized(
        work.folder,
        tuple(store for store in stores if store.num_documents),
        TokenStore(assembled / "validation"),
        np.load(assembled / _COUNTS),
        manifest,
    )


def make_shards(
    options: DataOptions,
    source: Source,
    tokenizer: Tokenizer,
    report: Progress,
    processes: int | None,
    node: tuple[int, int],
) -> tuple[int, int]:
    """Makes the shards that fall to node k of n, node = (k, n) with k from 1.

    Returns how many of the source's shards are there, and how many there will be.
    """
    work = _work(options, source, tokenizer, report, processes)
    number, nodes = node
    total = len(range(len(source.shards))[: options.shards])
    _make(work, range(number - 1, total, nodes), report, processes)
    return sum(damage(work.folder / shard_name(shard)) is None for shard in range(total)), total


def _work(
    options: DataOptions, source: Source, tokenizer: Tokenizer, report: Progress, processes: int | None
) -> Tokenizing:
    encoder = _encoder(options, source, tokenizer)
    made_of = [FORMAT, tokenizer.fingerprint, options.validation.model_dump(mode="json"), source.made_of()]
    key = digest(made_of if encoder is None else [*made_of, encoder.fingerprint])
    folder = options.cache_dir.expanduser() / f"tokens-{key}"

    def write_split(target: Path) -> None:
        (target / "split.json").write_text(json.dumps(Split.of(source, options.validation).to_json()))

    split = json.loads((cached_folder(folder, "split", write_split) / "split.json").read_text())
    duplicates = None
    if isinstance(source.options, SourceOptions) and source.options.drop_duplicates:
        if damage(folder / "duplicates") is not None:
            _in_processes(Hashing(folder, source), "hashing", source, range(len(source.shards)), report, processes)
        duplicates = find_duplicates(folder, len(source.shards))
    return Tokenizing(
        folder,
        source,
        tokenizer,
        encoder,
        Split(options.validation, **split),
        options.validation,
        duplicates,
    )


def _encoder(options: DataOptions, source: Source, tokenizer: Tokenizer) -> SampleEncoder | None:
    """What encodes the samples of a source; None for one of texts."""
    if isinstance(source.options, SourceOptions):
        return None
    template = template_of(source.options, tokenizer, source.key)
    return SampleEncoder(template, source.options, options.sequence_length)


def _make(work: Tokenizing, numbers: Sequence[int], report: Progress, processes: int | None) -> bool:
    """Makes those of these shards that are not there; whether there were any."""
    missing = [number for number in numbers if damage(work.folder / shard_name(number)) is not None]
    if missing:
        _in_processes(work, "tokenizing", work.source, missing, report, processes)
    return bool(missing)


def _in_processes(
    function: Callable[[int, Callable[..., None]], None],
    what: str,
    source: Source,
    numbers: Sequence[int],
    report: Progress,
    processes: int | None,
) -> None:
    sizes = [sum(part.size for part in shard) for shard in source.shards]
    finished = sum(sizes) - sum(sizes[number] for number in numbers)
    under_way: Counter[int] = Counter()
    documents = tokens = 0
    began = time.monotonic()

    def say() -> None:
        seconds = max(time.monotonic() - began, 1e-3)
        pace = f": {documents / seconds:,.0f} documents/s, {tokens / seconds:,.0f} tokens/s" if tokens else ""
        done = finished + sum(min(read, sizes[number]) for number, read in under_way.items())
        report(f"{what} {source.options.path}{pace}", done, sum(sizes))

    def heard(number: int, figures: tuple[int, ...]) -> None:
        nonlocal documents, tokens
        under_way[number] += figures[0]
        documents, tokens = documents + figures[1], tokens + figures[2]
        say()

    say()
    for number, _ in run_jobs(function, numbers, processes or cpu_cores(), heard):
        under_way.pop(number, None)
        finished += sizes[number]
    say()


def _assemble(folder: Path, work: Tokenizing, numbers: Sequence[int]) -> None:
    """Writes the held-out documents of all shards, within their bound, and the counts of all that is trained on."""
    room = work.options.max_bytes
    counts = np.zeros(work.tokenizer.vocab_size, dtype=np.int64)
    with StoreWriter(folder / "validation", work.tokenizer, keep_text=True) as writer:
        for number in numbers:
            counts += TokenStore(work.folder / shard_name(number) / "train").counts
            kept = []
            for document in TokenStore(work.folder / shard_name(number) / "held_out").documents():
                if room is None or len(document.utf8) <= room:
                    room = None if room is None else room - len(document.utf8)
                    kept.append(document)
            writer.add_stored(kept)
    np.save(folder / _COUNTS, counts)
    summed = {"shards": len(numbers), "tokenizer": _policy(work.tokenizer)} | manifest_of(
        work.folder, numbers
    ).to_json()
    (folder / "summary.json").write_text(json.dumps(summed, indent=1) + "\n")


def _policy(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a tokenizer is and does to a document, for the record: the ids that begin and end it among that."""
    return {
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "document_begins_with": tokenizer.bos_id,
        "document_ends_with": tokenizer.eos_id,
        "unknown": tokenizer.unk_id,
    }


def _warn(source: Source, manifest: Manifest) -> None:
    if source.ignored:
        _log.warning("%s.path: '%s': %s.", source.key, source.options.path, source.ignored_in_words())
    if manifest.unreadable:
        first = manifest.examples[0]
        _log.warning("%s.path: skipped %d unreadable items; the first: %s.", source.key, manifest.unreadable, first)
