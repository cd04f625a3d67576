"""Exact duplicates within a source: found by hashes of the texts, shard by shard, before anything is tokenized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm.data.cache import cached_folder
from lm.data.fingerprint import wide_hash
from lm.data.readers import Unreadable
from lm.data.sources import Source

_PAIR = np.dtype([("low", "<u8"), ("high", "<u8")])
_AT_ONCE = 20_000_000
"""Hashes that are compared at once; all of them are held, at 16 bytes each."""
_REPORT_BYTES = 4_000_000


def _ignore(item: Unreadable) -> None:
    """Counted by whoever tokenizes."""


@dataclass(frozen=True)
class Hashing:
    """Writes the hashes of a shard's documents below `folder`, unless they are there."""

    folder: Path
    source: Source

    def __call__(self, number: int, report: Callable[..., None]) -> None:
        def build(folder: Path) -> None:
            hashes, read = bytearray(), 0
            for document in self.source.shard(number, _ignore):
                hashes += wide_hash(document.utf8)
                read += len(document.utf8)
                if read >= _REPORT_BYTES:
                    report(read, 0, 0)
                    read = 0
            (folder / "hashes").write_bytes(hashes)

        cached_folder(self.folder, f"hashes-{number:05}", build)


def find_duplicates(folder: Path, shards: int) -> Path:
    """A folder with one file for each shard: which of its documents, by number, equal an earlier one. [n] int64.

    folder: where `Hashing` has been with all shards.
    """
    return cached_folder(folder, "duplicates", lambda target: _write_duplicates(folder, shards, target))


def duplicates_of(folder: Path, number: int) -> np.ndarray:
    """The duplicates of a shard, as `find_duplicates` wrote them."""
    return np.fromfile(folder / f"{number:05}", dtype="<i8")


def _write_duplicates(folder: Path, shards: int, target: Path) -> None:
    hashes = [np.fromfile(folder / f"hashes-{number:05}" / "hashes", dtype=_PAIR) for number in range(shards)]
    classes = -(-sum(map(len, hashes)) // _AT_ONCE) or 1
    found: list[list[np.ndarray]] = [[] for _ in range(shards)]
    for one in range(classes):
        for shard, documents in _repeated(hashes, classes, one):
            found[shard].append(documents)
    for number, parts in enumerate(found):
        documents = np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)
        (target / f"{number:05}").write_bytes(documents.astype("<i8").tobytes())


def _repeated(hashes: list[np.ndarray], classes: int, one: int) -> Iterator[tuple[int, np.ndarray]]:
    """Documents, by shard, that were seen before, of those whose hash leaves the remainder `one`."""
    numbers = [np.flatnonzero(values["low"] % np.uint64(classes) == one) for values in hashes]
    chosen = np.concatenate([values[places] for values, places in zip(hashes, numbers, strict=True)])
    order = np.lexsort((chosen["high"], chosen["low"]))  # stable, so the first of equal ones stays first
    before, after = chosen[order[:-1]], chosen[order[1:]]
    repeated = np.zeros(len(chosen), dtype=bool)
    repeated[order[1:][before == after]] = True
    begin = 0
    for shard, places in enumerate(numbers):
        again = places[repeated[begin : begin + len(places)]]
        begin += len(places)
        if len(again):
            yield shard, again
