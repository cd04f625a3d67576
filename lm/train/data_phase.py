"""The run's data: made ready on all ranks, said in one line what it is, and shared out."""

from __future__ import annotations

from lm.data.prepare import Prepared, prepare
from lm.errors import UserError
from lm.train.distributed import World
from lm.train.folder import Run
from lm.train.format import counted, short_number
from lm.train.progress import Progress
from lm.train.timeline import Span

FEW_HELD_OUT = 4096
"""Held-out tokens below which a loss over them tells little: its standard error is above 0.03 nats or so."""


def prepare_on_all_ranks(run: Run, world: World, progress: Progress) -> Prepared:
    """Rank 0 prepares what is not in the cache, then the others find it there. Collective; raises UserError."""
    results: list[Prepared] = []

    def work() -> None:
        with progress.phase("preparing the data") as phase:
            results.append(
                prepare(run.data, lambda stage, done, total: phase.update(done, total=total or None, note=stage))
            )
            phase.update(note=summary(results[0], run.timeline.tokens))

            require_rows(run, results[0])

    world.on_rank_zero(work)
    return results[0] if results else prepare(run.data)


def require_rows(run: Run, prepared: Prepared) -> None:
    """Raises UserError where the sources have given all that they may before the run ends."""
    for span in run.timeline.spans:
        source = span.source
        given = prepared.stage(source.index, source.sequence_length, source.weights, source.shards).order.num_rows
        if given is not None and span.end_row > given:
            raise UserError(
                f"data.sources: with their max_epochs they give {given:,} rows of {source.sequence_length} tokens; the "
                f"run asks for {span.end_row:,} by step {span.end_step:,}. Raise one of them, or lower train.steps"
            )


def summary(prepared: Prepared, tokens: int) -> str:
    """How much text there is, and how often a run of so many tokens reads it."""
    train, held_out = prepared.statistics, prepared.validation_statistics
    if train is None:
        rows = 0 if prepared.validation is None else prepared.validation.num_rows
        return f"rows are made as they are read; held out {rows:,}; the run reads {short_number(tokens)} tokens"
    masked = train.targets < train.tokens - train.documents
    fitting = ((train.cut, "prompts cut to a row"), (train.dropped, "samples dropped as longer than a row"))
    few = " (few: raise data.validation.fraction)" if 0 < held_out.tokens < FEW_HELD_OUT else ""
    return (
        f"{counted(train.documents, 'document')}, {short_number(train.tokens)} tokens"
        + (f", {short_number(train.targets)} of them to learn; " if masked else "; ")
        + "".join(f"{number:,} {what}; " for number, what in fitting if number)
        + f"held out {counted(held_out.documents, 'document')}, {short_number(held_out.tokens)} tokens{few}; "
        f"the run reads {short_number(tokens)} tokens, {short_number(tokens / train.tokens)} epochs"
    )


def require_whole_rows(run: Run, ranks: int, section: str = "train") -> None:
    """Raises UserError where ranks, or groups of ranks that share theirs, cannot share the rows of every step equally.

    The message names the section. So it does where the ranks do not form such groups.
    """
    shared = run.train.sequence_parallel
    if ranks % shared:
        raise UserError(
            f"train.sequence_parallel: {ranks} {'rank' if ranks == 1 else 'ranks'} cannot form groups of {shared} that "
            f"share a sequence: start a multiple of {shared} ranks, or set it to a number that divides {ranks}"
        )
    readers = ranks // shared
    groups = "ranks" if shared == 1 else f"groups of {shared} ranks"
    for span in run.timeline.spans:
        if span.rows % readers:
            length = span.source.sequence_length
            raise UserError(
                f"{_batch_key(run, span, section)}: {span.step_tokens} tokens are {span.rows} rows of {length}, which "
                f"{readers} {groups} cannot share equally: use a multiple of {readers * length}, or another number of "
                "ranks"
            )


def _batch_key(run: Run, span: Span, section: str) -> str:
    """Where the batch of these steps is set."""
    if span.step_tokens < max(other.step_tokens for other in run.timeline.spans if other.stage == span.stage):
        return f"{section}.batch_warmup.tokens"
    stages = run.train.stages
    own = stages and stages[span.stage].global_batch_tokens is not None
    return f"{section}.stages.{span.stage}.global_batch_tokens" if own else f"{section}.global_batch_tokens"
