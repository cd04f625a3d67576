"""The run's data: made ready on all ranks, said in one line what it is, and shared out."""

from __future__ import annotations

from lm.data.prepare import Prepared, prepare
from lm.errors import UserError
from lm.train.distributed import World
from lm.train.folder import Run
from lm.train.format import short_number
from lm.train.progress import Progress


def prepare_on_all_ranks(run: Run, world: World, progress: Progress) -> Prepared:
    """Rank 0 prepares what is not in the cache, then the others find it there. Collective; raises UserError."""
    results: list[Prepared] = []

    def work() -> None:
        with progress.phase("preparing the data") as phase:
            results.append(
                prepare(run.data, lambda stage, done, total: phase.update(done, total=total or None, note=stage))
            )
            phase.update(note=summary(results[0], run.train.steps * run.train.global_batch_tokens))

    world.on_rank_zero(work)
    return results[0] if results else prepare(run.data)


def summary(prepared: Prepared, tokens: int) -> str:
    """How much text there is, and how often a run of so many tokens reads it."""
    train, held_out, fitted = prepared.statistics, prepared.validation_statistics, prepared.fitted
    if train is None:
        rows = 0 if prepared.validation is None else prepared.validation.num_rows
        return f"rows are made as they are read; held out {rows:,}; the run reads {short_number(tokens)} tokens"
    masked = train.targets < train.tokens - train.documents
    fitting = ((fitted.cut, "prompts cut to a row"), (fitted.dropped, "samples dropped as longer than a row"))
    return (
        f"{train.documents:,} documents, {short_number(train.tokens)} tokens"
        + (f", {short_number(train.targets)} of them to learn; " if masked else "; ")
        + "".join(f"{number:,} {what}; " for number, what in fitting if number)
        + f"held out {held_out.documents:,}, {short_number(held_out.tokens)}; "
        f"the run reads {short_number(tokens)}, {short_number(tokens / train.tokens)} epochs"
    )


def rows_per_rank(run: Run, ranks: int, section: str = "train") -> int:
    """Rows that each rank, or each group of ranks that share theirs, reads in one step.

    Raises UserError where the ranks do not form such groups and, naming the section, where the batch does not divide.
    """
    shared = run.train.sequence_parallel
    if ranks % shared:
        raise UserError(
            f"train.sequence_parallel: {ranks} {'rank' if ranks == 1 else 'ranks'} cannot form groups of {shared} that "
            f"share a sequence: start a multiple of {shared} ranks, or set it to a number that divides {ranks}"
        )
    rows = run.train.global_batch_tokens // run.data.sequence_length
    readers = ranks // shared
    if rows % readers:
        groups = "ranks" if shared == 1 else f"groups of {shared} ranks"
        raise UserError(
            f"{section}.global_batch_tokens: {run.train.global_batch_tokens} tokens are {rows} rows of "
            f"{run.data.sequence_length}, which {readers} {groups} cannot share equally: use a multiple of "
            f"{readers * run.data.sequence_length}, or another number of ranks"
        )
    return rows // readers
