"""The order of rows: which row of which source is the r-th of the run, by arithmetic alone.

Nothing is shuffled in memory and nothing is remembered, so row 10^12 costs what row 0 costs, resuming at any step is
exact, and it does not matter how many ranks share the work: each asks for its own global row indices.

Two ideas suffice. *Mixing* (`lm.data.mixing`): among the first r rows, the last source with share p has had floor(r p);
the others divide the remaining rows in the same way. *Shuffling*: epoch e of a source passes its row numbers through a
permutation of its own, a Feistel network keyed by (seed, source, epoch).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, Protocol

from lm.data.mixing import Mixing

_ROUNDS = 6
_MASK64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(value: int) -> int:
    """64 well-stirred bits of a 64-bit number (the finalizer of SplitMix64; Steele, Lea and Flood, 2014)."""
    value = (value + _GOLDEN) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


class Permutation:
    """A keyed permutation of 0 .. size-1, computed element by element.

    A Feistel network permutes the next even power of two, at most four times larger; an element that lands outside
    is sent through again until it lands inside (cycle walking, Black and Rogaway, 2002).
    """

    def __init__(self, size: int, key: int) -> None:
        self.size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._keys = [_mix(key ^ _mix(number)) for number in range(_ROUNDS)]

    def __call__(self, index: int) -> int:
        """The place of `index`; both in [0, size)."""
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is outside [0, {self.size})")
        shift = 64 - self._half
        mask = (1 << self._half) - 1
        while True:
            left, right = index >> self._half, index & mask
            for key in self._keys:
                left, right = right, left ^ (_mix(right ^ key) >> shift)
            index = left << self._half | right
            if index < self.size:
                return index


class Place(NamedTuple):
    """A row of the run: row `row` of source `source`, in that source's epoch `epoch`."""

    source: int
    epoch: int
    row: int


class Order(Protocol):
    """Maps a global row index to a place.

    Attributes:
        rows: of each source in one epoch.
        num_rows: how many rows there are; None where there is no end.
    """

    rows: tuple[int, ...]
    num_rows: int | None

    def counts(self, rows: int) -> list[int]:
        """How many of the first `rows` rows each source gives."""

    def locate(self, index: int) -> Place:
        """The place of global row `index` (0 or more)."""


class ShuffledOrder:
    """The order of training: sources mixed by weight, every epoch of a source shuffled anew.

    `rows[s]` is the number of rows in one epoch of source s, and `max_epochs[s]` how many epochs it gives at most, None
    for any number; see `lm.data.mixing` for what that does to the mix.

    Attributes:
        num_rows: rows until every source has given all it may; None where there is no end.
    """

    def __init__(
        self,
        rows: Sequence[int],
        weights: Sequence[float],
        seed: int,
        max_epochs: Sequence[float | None] | None = None,
    ) -> None:
        self.rows = tuple(rows)
        self.seed = seed
        self._mixing = Mixing(rows, weights, max_epochs)
        self.num_rows = self._mixing.num_rows

    def locate(self, index: int) -> Place:
        """The place of global row `index`. Raises UserError behind the last row."""
        source, number = self._mixing.locate(index)
        epoch, position = divmod(number, self.rows[source])
        return Place(source, epoch, _permutation(self.rows[source], self.seed, source, epoch)(position))

    def counts(self, rows: int) -> list[int]:
        """How many of the first `rows` rows each source gives."""
        return self._mixing.counts(rows)


class SequentialOrder:
    """The order of validation: every row of every source once, as stored."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = tuple(rows)
        self.num_rows: int | None = sum(rows)

    def counts(self, rows: int) -> list[int]:
        """How many of the first `rows` rows each source gives."""
        begins = list(accumulate(self.rows, initial=0))
        return [min(max(0, rows - begin), size) for begin, size in zip(begins, self.rows, strict=False)]

    def __len__(self) -> int:
        return sum(self.rows)

    def locate(self, index: int) -> Place:
        """The place of row `index` in [0, len(self))."""
        row = index
        for source, rows in enumerate(self.rows):
            if 0 <= row < rows:
                return Place(source, 0, row)
            row -= rows
        raise IndexError(f"row {index} is outside [0, {len(self)})")


def stage_seed(seed: int, index: int) -> int:
    """The seed of a stage's order; that of stage 0 is the run's own."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}: stage {index}".encode(), digest_size=8).digest(), "little")


@lru_cache(maxsize=256)
def _permutation(size: int, seed: int, source: int, epoch: int) -> Permutation:
    key = hashlib.blake2b(f"{seed}:{source}:{epoch}".encode(), digest_size=8).digest()
    return Permutation(size, int.from_bytes(key, "little"))
