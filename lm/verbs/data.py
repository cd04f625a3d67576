"""Verbs around the text of a run: prepare, data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lm.arguments import not_negative, positive
from lm.errors import UserError
from lm.verbs.runs import config_arguments, run_with_its_text
from lm.verbs.verb import Verb

if TYPE_CHECKING:
    from lm.data.prepare import Prepared
    from lm.data.show import Read
    from lm.run_file import AnyRun
    from lm.train.progress import Progress
    from lm.train.timeline import Timeline


def _prepare(chosen: argparse.Namespace) -> None:
    run = run_with_its_text(chosen)
    from lm.data.prepare import prepare_node
    from lm.train.progress import Progress

    screen = Progress()
    if chosen.node is not None:
        with screen.phase("preparing") as phase:
            shards = prepare_node(
                run.data.model_copy(update={"shards": _most_shards(run)}),
                chosen.node,
                lambda stage, done, total: phase.update(done, total=total or None, note=stage),
                chosen.processes,
            )
        for name, there, total in shards:
            print(f"{name}: {there} of {total} shards are there")
        return
    prepared, read = _prepared(run, screen, chosen.processes)
    train, held_out = prepared.statistics, prepared.validation_statistics
    if train is None:
        print("nothing to prepare: rows are made as they are read")
        return
    from lm.data.show import summary

    print(f"{train.tokens:,} tokens to train on, {train.targets:,} of them to learn, {held_out.tokens:,} held out")
    if train.cut or train.dropped:
        print(f"samples longer than a row: {train.cut:,} prompts cut, {train.dropped:,} samples dropped")
    print("\n".join(summary(run.data, prepared.manifests, read)))


def _prepared(run: AnyRun, screen: Progress, processes: int | None = None) -> tuple[Prepared, list[Read]]:
    """The data of a run, and what all its steps read of it."""
    from lm.data.prepare import prepare

    with screen.phase("preparing") as phase:
        prepared = prepare(
            run.data, lambda stage, done, total: phase.update(done, total=total or None, note=stage), processes
        )
        return prepared, _read(run.timeline, prepared, run.timeline.steps)


def _read(timeline: Timeline, prepared: Prepared, steps: int) -> list[Read]:
    """What the first steps read; where the sources end before, as much as they give."""
    from lm.data.show import Read

    found = []
    for source, rows in timeline.rows_before(steps).items():
        batches = prepared.stage(source.index, source.sequence_length, source.weights, source.shards)
        end = batches.order.num_rows
        found.append(Read(batches, rows if end is None else min(rows, end)))
    return found


def _most_shards(run: AnyRun) -> int | None:
    """How many of the first shards of each source some step reads; None for all."""
    from lm.data.mix import shards_read

    counts = [run.data.shards, *(shards_read(run.data.shards, span.source.shards) for span in run.timeline.spans)]
    return None if None in counts else max(count for count in counts if count is not None)


def _data(chosen: argparse.Namespace) -> None:
    run = run_with_its_text(chosen)
    from lm.data.show import fill_rate, shown_rows, summary
    from lm.train.progress import Progress

    timeline = run.timeline
    if chosen.batch >= timeline.steps:
        raise UserError(f"--batch {chosen.batch}: the last of the run's {timeline.steps} is {timeline.steps - 1}")
    prepared, read = _prepared(run, Progress())
    step = timeline[chosen.batch]
    source, end = step.source, step.first_row + step.rows
    batches = prepared.stage(source.index, source.sequence_length, source.weights, source.shards)
    if batches.order.num_rows is not None and end > batches.order.num_rows:
        raise UserError(
            f"--batch {chosen.batch}: the sources end after {batches.order.num_rows:,} rows of {source}, as their "
            "max_epochs say"
        )
    print("\n".join(summary(run.data, prepared.manifests, read)))
    print(f"rows are {fill_rate(read):.1%} full")
    shown = range(step.first_row, min(end, step.first_row + chosen.rows))
    print(f"batch {chosen.batch}: rows {step.first_row} to {end - 1} of {source}, {len(shown)} shown")
    print("\n".join(shown_rows(batches, prepared.tokenizer, run.data, shown, chosen.characters)))
    if chosen.pictures is not None:
        from lm.verbs.data_pictures import points, write_pictures

        ways = {step: _read(timeline, prepared, step) for step in points(timeline.steps)}
        for path in write_pictures(run.data, prepared.manifests, ways, chosen.pictures):
            print(path)


def node(word: str) -> tuple[int, int]:
    """`2/8` as (2, 8). Raises ArgumentTypeError for anything that is not k of n."""
    number, _, nodes = word.partition("/")
    if number.isdecimal() and nodes.isdecimal() and 1 <= int(number) <= int(nodes):
        return int(number), int(nodes)
    raise argparse.ArgumentTypeError(f"'{word}' is not a node of several, such as 1/8 for the first of 8")


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)
    parser.add_argument("--processes", type=positive, metavar="N", help="that tokenize (default: one for each core)")
    parser.add_argument("--node", type=node, metavar="K/N", help="only make the shards that fall to node K of N")


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)
    parser.add_argument(
        "--batch", type=not_negative, default=0, metavar="I", help="the batch of step I + 1 (default: 0)"
    )
    parser.add_argument("--rows", type=positive, default=4, metavar="N", help="show at most so many rows (default: 4)")
    parser.add_argument(
        "--characters", type=positive, default=200, metavar="N", help="of a document's ends (default: 200)"
    )
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write the mix, lengths and epochs as SVG files")


VERBS = {
    "prepare": Verb(
        _prepare,
        _prepare_arguments,
        "Train the tokenizer and tokenize the sources ahead of a run; called again, go on.",
        "braid prepare configs/quickstart.yaml",
        resumes=True,
    ),
    "data": Verb(
        _data,
        _data_arguments,
        "Show a batch of a run as text with its documents, and its mix in figures and pictures.",
        "braid data configs/quickstart.yaml --batch 100 --pictures pictures",
    ),
}
