"""The training rows of one source, by the options of the run: as a stream, by a plan, or of whole samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lm.data.mix import SourceRows
from lm.data.options import DataOptions, SourceOptions
from lm.data.packing import PackedRows, PlanWriter, shortest_of_longest
from lm.data.rows import JoinedRows, Rows, rows_of
from lm.data.sources import Source
from lm.data.tokenizing import Shards
from lm.data.workers import Crew
from lm.errors import UserError

_WORTH_PROCESSES = 2_000_000
"""Documents that take one process some seconds to pack."""


def source_rows(options: DataOptions, source: Source, made: Callable[[int | None], Shards], crew: Crew) -> SourceRows:
    """What a source gives to the mix.

    made: its first so many shards, None for all.

    Raises:
        UserError: naming the key, no document is long enough.
    """
    chosen = source.options
    if not isinstance(chosen, SourceOptions):
        return SourceRows(
            lambda length, shards: _joined([rows_of(store, length) for store in made(shards).stores]),
            chosen.weight,
            chosen.max_epochs,
            only_length=options.sequence_length,
        )
    _min_tokens(chosen, source.key, made(options.shards))

    def rows(sequence_length: int, shards: int | None) -> Rows:
        read = made(shards)
        min_tokens = _min_tokens(chosen, source.key, read)
        if options.packing == "concat" and min_tokens == 0:
            return _joined([rows_of(store, sequence_length) for store in read.stores])
        folders = tuple(store.folder for store in read.stores)
        plans = PlanWriter(read.folder, folders, options.packing, sequence_length, min_tokens)
        if read.manifest.documents > _WORTH_PROCESSES:
            for _ in crew.run(plans, range(len(folders)), lambda job, figures: None):
                pass
        packed = [PackedRows(store, plans.read(number), sequence_length) for number, store in enumerate(read.stores)]
        return _joined([part for part in packed if len(part)])

    return SourceRows(rows, chosen.weight, chosen.max_epochs)


def _joined(parts: Sequence[Rows]) -> Rows:
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def _min_tokens(options: SourceOptions, key: str, made: Shards) -> int:
    """Tokens of the shortest document that is trained on; 0 for all."""
    least = options.min_tokens or 0
    if options.longest is not None and options.longest < 1:
        least = max(least, shortest_of_longest(list(made.stores), options.longest))
    longest = max(int((store.offsets[1:] - store.offsets[:-1]).max()) for store in made.stores) if least else 0
    if longest < least:
        raise UserError(
            f"{key}.min_tokens: {least} is more than the longest document of '{options.path}' has, {longest}: lower it."
        )
    return least
