"""The training rows of one source, by the options of the run: as a stream, by a plan, or of whole samples."""

from __future__ import annotations

from collections.abc import Sequence

from lm.data.mix import SourceRows
from lm.data.options import DataOptions, SourceOptions
from lm.data.packing import PackedRows, PlanWriter, shortest_of_longest
from lm.data.rows import JoinedRows, Rows, rows_of
from lm.data.sources import Source
from lm.data.threads import cpu_cores
from lm.data.tokenizing import Tokenized
from lm.data.workers import run_jobs
from lm.errors import UserError

_WORTH_PROCESSES = 2_000_000
"""Documents that take one process some seconds to pack."""


def source_rows(options: DataOptions, source: Source, made: Tokenized, processes: int | None) -> SourceRows:
    """What a source gives to the mix.

    Raises:
        UserError: naming the key, no document is long enough.
    """
    chosen = source.options
    if not isinstance(chosen, SourceOptions):
        return SourceRows(
            lambda length: _joined([rows_of(store, length) for store in made.shards]),
            chosen.weight,
            chosen.max_epochs,
            only_length=options.sequence_length,
        )
    min_tokens = _min_tokens(chosen, source.key, made)

    def rows(sequence_length: int) -> Rows:
        if options.packing == "concat" and min_tokens == 0:
            return _joined([rows_of(store, sequence_length) for store in made.shards])
        folders = tuple(store.folder for store in made.shards)
        plans = PlanWriter(made.folder, folders, options.packing, sequence_length, min_tokens)
        if made.manifest.documents > _WORTH_PROCESSES:
            for _ in run_jobs(plans, range(len(folders)), processes or cpu_cores(), lambda job, figures: None):
                pass
        packed = [PackedRows(store, plans.read(number), sequence_length) for number, store in enumerate(made.shards)]
        return _joined([part for part in packed if len(part)])

    return SourceRows(rows, chosen.weight, chosen.max_epochs)


def _joined(parts: Sequence[Rows]) -> Rows:
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def _min_tokens(options: SourceOptions, key: str, made: Tokenized) -> int:
    """Tokens of the shortest document that is trained on; 0 for all."""
    least = options.min_tokens or 0
    if options.longest is not None and options.longest < 1:
        least = max(least, shortest_of_longest(list(made.shards), options.longest))
    longest = max(int((store.offsets[1:] - store.offsets[:-1]).max()) for store in made.shards) if least else 0
    if longest < least:
        raise UserError(
            f"{key}.min_tokens: {least} is more than the longest document of '{options.path}' has, {longest}: lower it."
        )
    return least
