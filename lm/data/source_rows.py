"""The training rows of one source, by the options of the run: as a stream, by a plan, or of whole samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lm.data.chosen import Choosing, ChosenRows
from lm.data.manifest import Manifest
from lm.data.mix import SourceRows
from lm.data.options import DataOptions, SourceOptions
from lm.data.packing import PackedRows, PlanWriter, packed_together, shortest_of_longest
from lm.data.rows import JoinedRows, Rows, rows_of
from lm.data.sources import Source
from lm.data.store import Stores
from lm.data.tokenizing import Shards
from lm.data.workers import Crew
from lm.errors import UserError

_WORTH_PROCESSES = 2_000_000
"""Documents that take one process some seconds to pack."""


def source_rows(options: DataOptions, source: Source, made: Callable[[int | None], Shards], crew: Crew) -> SourceRows:
    """What a source gives to the mix.

    made: its first so many shards, None for all.

    Raises:
        UserError: naming the key, no document is long enough. So do the rows of a stage, and where its shards hold
            nothing to train on.
    """
    chosen = source.options
    if not isinstance(chosen, SourceOptions):

        def samples(sequence_length: int, shards: int | None) -> Rows:
            read = made(shards)
            require_text(options, source, read, shards)
            return rows_of(read.stores, sequence_length)

        return SourceRows(samples, chosen.weight, chosen.max_epochs, only_length=options.sequence_length)
    _min_tokens(chosen, source.key, made(options.shards))

    def rows(sequence_length: int, shards: int | None) -> Rows:
        read = made(shards)
        require_text(options, source, read, shards)
        min_tokens = _min_tokens(chosen, source.key, read)
        found = _rows(options, read, min_tokens, sequence_length, crew)
        if not len(found):
            raise UserError(f"{source.key}.path: no document of '{chosen.path}' has a token to predict.")
        return found

    return SourceRows(rows, chosen.weight, chosen.max_epochs)


def _rows(options: DataOptions, read: Shards, min_tokens: int, sequence_length: int, crew: Crew) -> Rows:
    """The rows of texts. What is found out of a store for them lies in the cache."""
    if options.packing == "concat" and min_tokens == 0:
        return rows_of(read.stores, sequence_length)
    if options.packing == "concat":
        choosing = Choosing(read.folder, tuple(store.folder for store in read.stores), min_tokens)
        _write(choosing, len(read.stores), read, crew)
        chosen = list(map(choosing.read, range(len(read.stores))))
        return ChosenRows(Stores(read.stores), chosen, sequence_length)
    groups = packed_together(read.stores, options.packing, sequence_length)
    folders = tuple(tuple(store.folder for store in group) for group in groups)
    plans = PlanWriter(read.folder, folders, options.packing, sequence_length, min_tokens)
    _write(plans, len(groups), read, crew)
    packed = [PackedRows(Stores(group), plans.read(number), sequence_length) for number, group in enumerate(groups)]
    filled = [part for part in packed if len(part)] or packed[:1]
    return filled[0] if len(filled) == 1 else JoinedRows(filled)


def _write(writer: Choosing | PlanWriter, count: int, read: Shards, crew: Crew) -> None:
    """Makes in processes, where that pays, what would be made when it is read."""
    if read.manifest.documents > _WORTH_PROCESSES:
        for _ in crew.run(writer, range(count), lambda job, figures: None):
            pass


def content_of(options: DataOptions, made: Shards) -> list[Any]:
    """What decides the rows of a source's shards, beside the options, as JSON: the tokens, shard by shard.

    Where rows once ended with each shard, it says that they go on over them.
    """
    return [*made.contents(), *(["rows go on over shards"] if over_shards(options, made) else [])]


def over_shards(options: DataOptions, made: Shards) -> bool:
    """Whether a row may begin in one shard of a source and end in another."""
    return len(made.stores) > 1 and (options.packing != "document" or made.stores[0].has_targets)


def require_text(options: DataOptions, source: Source, made: Shards, shards: int | None) -> None:
    """Raises UserError, naming the key, where a source's first so many shards (None: all) hold nothing to train on."""
    if made.stores:
        return
    named = f"{source.key}, '{source.options.path}'"
    if made.manifest.dropped:
        raise UserError(
            f"data.sequence_length: {options.sequence_length} is too short for {named}: every sample that is to be "
            "trained on has longer answers. Raise it."
        )
    if made.count < made.total:
        key = "data.shards" if shards == options.shards else f"train.stages: shards {shards}"
        raise UserError(
            f"{key}: of the first {made.count} of {made.total} shards of {named} nothing is trained on: "
            f"{_left_out(made.manifest)}. Read more shards."
        )
    if made.manifest.duplicates and not made.manifest.held_out:
        raise UserError(f"{source.key}.drop_duplicates: sources before it hold every text of '{source.options.path}'.")
    raise UserError(
        f"data.validation.fraction: {options.validation.fraction} holds out all of {named}: its documents are all "
        "equal, or they are the few that other sources hold out. Add text, set data.validation.seed to hold out "
        "others, or set data.validation.fraction=0."
    )


def _left_out(made: Manifest) -> str:
    """What became of documents of which none is trained on."""
    counts = {"held out": made.held_out, "duplicates": made.duplicates, **made.skipped}
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count) or "they are empty"


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
