"""Verbs around the text of a run: prepare, data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lm.arguments import positive
from lm.errors import UserError
from lm.verbs.runs import config_arguments, run_with_its_text
from lm.verbs.verb import Verb

if TYPE_CHECKING:
    from lm.data.prepare import Prepared
    from lm.run_file import AnyRun


def _prepare(chosen: argparse.Namespace) -> None:
    run = run_with_its_text(chosen)
    from lm.data.prepare import prepare_node
    from lm.train.progress import Progress

    screen = Progress()
    if chosen.node is not None:
        with screen.phase("preparing") as phase:
            shards = prepare_node(
                run.data,
                chosen.node,
                lambda stage, done, total: phase.update(done, total=total or None, note=stage),
                chosen.processes,
            )
        for name, there, total in shards:
            print(f"{name}: {there} of {total} shards are there")
        return
    prepared = _prepared(run, screen, chosen.processes)
    train, held_out, fitted = prepared.statistics, prepared.validation_statistics, prepared.fitted
    if train is None:
        print("nothing to prepare: rows are made as they are read")
        return
    from lm.data.show import summary

    print(f"{train.tokens:,} tokens to train on, {train.targets:,} of them to learn, {held_out.tokens:,} held out")
    if fitted.cut or fitted.dropped:
        print(f"samples longer than a row: {fitted.cut:,} prompts cut, {fitted.dropped:,} samples dropped")
    print("\n".join(summary(prepared, run.data, _rows(run))))


def _prepared(run: AnyRun, screen: object, processes: int | None = None) -> Prepared:
    from lm.data.prepare import prepare
    from lm.train.progress import Progress

    assert isinstance(screen, Progress)
    with screen.phase("preparing") as phase:
        return prepare(
            run.data, lambda stage, done, total: phase.update(done, total=total or None, note=stage), processes
        )


def _rows(run: AnyRun) -> int:
    """Rows that the run reads."""
    return run.train.steps * run.train.global_batch_tokens // run.data.sequence_length


def _data(chosen: argparse.Namespace) -> None:
    run = run_with_its_text(chosen)
    from lm.data.show import fill_rate, shown_rows, summary
    from lm.train.progress import Progress

    prepared = _prepared(run, Progress())
    size = run.train.global_batch_tokens // run.data.sequence_length
    end = prepared.train.order.num_rows
    if end is not None and (chosen.batch + 1) * size > end:
        raise UserError(f"--batch {chosen.batch}: the sources end after {end // size} batches, as max_epochs says")
    rows = range(chosen.batch * size, chosen.batch * size + min(size, chosen.rows))
    total = _rows(run) if end is None else min(_rows(run), end)
    print("\n".join(summary(prepared, run.data, total)))
    print(f"rows are {fill_rate(prepared, run.data, total):.1%} full")
    print(f"batch {chosen.batch}: rows {size * chosen.batch} to {size * (chosen.batch + 1) - 1}, {len(rows)} shown")
    print("\n".join(shown_rows(prepared, run.data, rows, chosen.characters)))
    if chosen.pictures is not None:
        from lm.verbs.data_pictures import write_pictures

        for path in write_pictures(prepared, run.data, total, size, chosen.pictures):
            print(path)


def node(word: str) -> tuple[int, int]:
    """`2/8` as (2, 8). Raises ArgumentTypeError for anything that is not k of n."""
    number, _, nodes = word.partition("/")
    if number.isdecimal() and nodes.isdecimal() and 1 <= int(number) <= int(nodes):
        return int(number), int(nodes)
    raise argparse.ArgumentTypeError(f"{word!r} is not a node of several, such as 1/8 for the first of 8")


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)
    parser.add_argument("--processes", type=positive, metavar="N", help="that tokenize; one for each core if left out")
    parser.add_argument("--node", type=node, metavar="K/N", help="only make the shards that fall to node K of N")


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)
    parser.add_argument("--batch", type=_not_negative, default=0, metavar="I", help="the batch of step I + 1; 0")
    parser.add_argument("--rows", type=positive, default=4, metavar="N", help="show at most so many rows; 4")
    parser.add_argument("--characters", type=positive, default=200, metavar="N", help="of a document's ends; 200")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write the mix, lengths and epochs as SVG files")


def _not_negative(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is not a number from 0 on")
    return int(word)


VERBS = {
    "prepare": Verb(
        _prepare,
        _prepare_arguments,
        "Train the tokenizer and tokenize the sources ahead of a run; called again, go on.",
        "braid prepare configs/quickstart.yaml",
    ),
    "data": Verb(
        _data,
        _data_arguments,
        "Show a batch of a run as text with its documents, and its mix in figures and pictures.",
        "braid data configs/quickstart.yaml --batch 100 --pictures pictures",
    ),
}
