"""How a source falls into shards: whole files together up to a size, large ones cut where their kind allows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet

from lm.data.compression import is_compressed, kind_of
from lm.data.readers import Part

SMALLEST, LARGEST = 4_000_000, 1_000_000_000
"""Bytes of a shard. What is lost by a kill is at most one for each process; what is opened is all of them."""
_SHARDS = 512


@dataclass(frozen=True)
class TextFile:
    """One file of a source, as its folder entry describes it."""

    path: Path
    size: int
    mtime_ns: int


def shard_name(number: int) -> str:
    """What the folder of a shard is called, below one of its source."""
    return f"shard-{number:05}"


def shards_of(files: Sequence[TextFile], may_cut: bool, shard_bytes: int | None = None) -> tuple[tuple[Part, ...], ...]:
    """The parts that each shard reads, all files in order.

    may_cut: a file may be in several shards. shard_bytes: left out, a 512th of the source, within bounds.
    """
    wanted = shard_bytes or min(LARGEST, max(SMALLEST, sum(file.size for file in files) // _SHARDS))
    shards: list[tuple[Part, ...]] = []
    together: list[Part] = []
    size = 0  # of the files together
    for file in files:
        parts = list(_parts(file, wanted)) if may_cut and file.size > wanted * 3 // 2 else [Part(file.path, file.size)]
        if len(parts) == 1 and size + file.size <= wanted * 3 // 2:
            together += parts
            size += file.size
            continue
        if together:
            shards.append(tuple(together))
        shards += [(part,) for part in parts[:-1]]
        together, size = parts[-1:], parts[-1].size
    return (*shards, tuple(together))


def _parts(file: TextFile, wanted: int) -> Iterator[Part]:
    """Equal parts of a file that can be cut, or the whole."""
    count, places = -(-file.size // wanted), 1
    kind = kind_of(file.path)
    if kind == ".jsonl" and not is_compressed(file.path):
        places = file.size
    elif kind == ".parquet":
        try:
            places = pyarrow.parquet.read_metadata(file.path).num_row_groups
        except (OSError, pyarrow.ArrowException):
            places = 1  # whoever reads it says what is wrong
    count = min(count, places)
    if count <= 1:
        yield Part(file.path, file.size)
        return
    cuts = [places * number // count for number in range(count + 1)]
    for begin, end in pairwise(cuts):
        yield Part(file.path, file.size // count, begin, None if end == places else end)
