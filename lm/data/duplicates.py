"""Exact duplicates, within a source or across several: found by hashes of the texts before anything is tokenized.

The hashes of a source lie in a folder of their own in the cache, whatever tokenizes it and is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lm.data.cache import cached_folder
from lm.data.fingerprint import digest, wide_hash
from lm.data.mapped import mapped
from lm.data.sharding import shard_name
from lm.data.sources import Source
from lm.data.workers import reporting

_AT_ONCE = 20_000_000
"""Hashes that are compared at once, at 16 bytes each; the others stay on the disk."""


@dataclass(frozen=True)
class Hashing:
    """Writes the hashes of the documents of a shard of a source into the cache, unless they are there."""

    cache_dir: Path
    source: Source

    @cached_property
    def folder(self) -> Path:
        """Named by what decides the documents; which of them are dropped is no part of that."""
        made_of = self.source.made_of()
        read_as = {name: value for name, value in made_of["read_as"].items() if name != "drop_duplicates"}
        return self.cache_dir / f"hashes-{digest(made_of | {'read_as': read_as})}"

    def name(self, number: int) -> str:
        """What the folder of a shard's hashes is called."""
        return shard_name(number)

    def __call__(self, number: int, report: Callable[..., None]) -> None:
        def build(folder: Path) -> None:
            documents = reporting(self.source.shard(number), report)
            (folder / "hashes").write_bytes(b"".join(wide_hash(document.utf8) for document in documents))

        cached_folder(self.folder, self.name(number), build)

    def hashes(self) -> list[np.ndarray]:
        """Of the documents of every shard, [n, 2] uint64, where all are written."""
        numbers = range(len(self.source.shards))
        return [mapped(self.folder / self.name(number) / "hashes", "<u8").reshape(-1, 2) for number in numbers]


def write_duplicates(target: Path, before: Sequence[Hashing], own: Hashing) -> None:
    """One file for each of the source's own shards: which of its documents, by number, equal an earlier one.

    before: what comes earlier than the source's own documents. All hashes are there.
    """
    earlier = [hashes for hashing in before for hashes in hashing.hashes()]
    hashes = [*earlier, *own.hashes()]
    classes = -(-sum(map(len, hashes)) // _AT_ONCE) or 1
    found: list[list[np.ndarray]] = [[] for _ in hashes]
    for one in range(classes):
        for shard, documents in _repeated(hashes, classes, one):
            found[shard].append(documents)
    for number, parts in enumerate(found[len(earlier) :]):
        documents = np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)
        (target / f"{number:05}").write_bytes(documents.astype("<i8").tobytes())


def duplicates_of(folder: Path, number: int) -> np.ndarray:
    """The duplicates of a shard, as `write_duplicates` wrote them, [n] int64."""
    return np.fromfile(folder / f"{number:05}", dtype="<i8")


def _repeated(hashes: list[np.ndarray], classes: int, one: int) -> Iterator[tuple[int, np.ndarray]]:
    """Documents, by shard, that were seen before, of those whose hash leaves the remainder `one`."""
    numbers = [np.flatnonzero(values[:, 0] % np.uint64(classes) == one) for values in hashes]
    chosen = np.concatenate([values[places] for values, places in zip(hashes, numbers, strict=True)])
    order = np.lexsort(chosen.T)  # stable, so the first of equal ones stays first
    before, after = chosen[order[:-1]], chosen[order[1:]]
    repeated = np.zeros(len(chosen), dtype=bool)
    repeated[order[1:][(before == after).all(axis=1)]] = True
    begin = 0
    for shard, places in enumerate(numbers):
        again = places[repeated[begin : begin + len(places)]]
        begin += len(places)
        if len(again):
            yield shard, again
