"""The sources of a run together: their training rows at any length, in any mix, each in an order of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from lm.data.batches import Batches
from lm.data.order import ShuffledOrder, stage_seed
from lm.data.rows import Rows
from lm.errors import UserError

ShardCount = int | Literal["all"] | None
"""Shards of each source that a stage reads; None for as many as the run."""


def shards_read(own: int | None, stage: ShardCount) -> int | None:
    """How many of the first shards a stage reads, None for all. own: what the run says."""
    return own if stage is None else None if stage == "all" else stage


@dataclass(frozen=True, eq=False)
class SourceRows:
    """What one source gives.

    Attributes:
        at: its rows of so many tokens, of its first so many shards (None: all).
        weight: its share of the run's rows, against those of the others.
        max_epochs: how often it is read at most; None for any number.
        only_length: the one sequence length that it was made for; None where it has rows of any.
    """

    at: Callable[[int, int | None], Rows]
    weight: float
    max_epochs: float | None = None
    only_length: int | None = None


class Mix:
    """All sources of a run."""

    def __init__(
        self, sources: Sequence[SourceRows], sequence_length: int, seed: int, shards: int | None = None
    ) -> None:
        """sequence_length, shards: the run's own."""
        self.sources = tuple(sources)
        self._shards = shards
        self._sequence_length = sequence_length
        self._seed = seed
        self._rows = lru_cache(maxsize=4)(self._rows_of)

    def batches(
        self,
        stage: int = 0,
        sequence_length: int | None = None,
        weights: Sequence[float] | None = None,
        shards: ShardCount = None,
    ) -> Batches:
        """The training rows of a stage; what is left out is the run's own.

        Raises:
            UserError: weights that do not fit the sources, or a source that has no rows of this length.
        """
        length = sequence_length or self._sequence_length
        shares = [source.weight for source in self.sources] if weights is None else list(weights)
        if len(shares) != len(self.sources):
            raise UserError(f"weights: given {len(shares)}; data.sources has {len(self.sources)} entries, one for each")
        if min(shares) < 0 or not any(shares):
            raise UserError(f"weights: given {shares}; each is 0 or more, and one at least more")
        rows = self._rows(length, shards_read(self._shards, shards))
        caps = [source.max_epochs for source in self.sources]
        order = ShuffledOrder([len(source) for source in rows], shares, stage_seed(self._seed, stage), caps)
        return Batches(rows, order)

    def _rows_of(self, sequence_length: int, shards: int | None) -> list[Rows]:
        for index, source in enumerate(self.sources):
            if source.only_length not in (None, sequence_length):
                raise UserError(
                    f"data.sources.{index}: its samples are cut for rows of {source.only_length} tokens, so no stage "
                    f"can have rows of {sequence_length}: give every stage that length, or make it a run of its own."
                )
        return [source.at(sequence_length, shards) for source in self.sources]
