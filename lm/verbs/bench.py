"""The verb that measures against peers. The benchmarks, and torch with them, are imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.arguments import positive
from lm.errors import UserError, did_you_mean
from lm.verbs.verb import Verb

if TYPE_CHECKING:
    from benchmarks.measure import Clock


def _mixers(chosen: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    from benchmarks import mixers

    names = _known(chosen.only, mixers.kinds(1), "mixer")
    return mixers.main(chosen.quick, chosen.lengths, names, [False] if chosen.forward else [False, True], clock)


def _decode(chosen: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    from benchmarks import decode

    return decode.main(chosen.quick, chosen.lengths[0] if chosen.lengths else None, clock)


def _train(chosen: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    from benchmarks import train

    return train.main(chosen.quick, chosen.lengths, _known(chosen.only, train.PATTERNS, "model"), clock)


def _loss(chosen: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    from benchmarks import loss

    return loss.main(chosen.quick, chosen.lengths[0] if chosen.lengths else None, clock)


WHAT: dict[str, Callable[[argparse.Namespace, Clock], dict[str, Any]]] = {
    "mixers": _mixers,
    "decode": _decode,
    "train": _train,
    "loss": _loss,
}


def _bench(chosen: argparse.Namespace) -> None:
    if chosen.what == "report":
        from benchmarks import report

        report.main(chosen.files, chosen.output)
    else:
        from benchmarks.measure import CPU, WALL, write_figures

        if chosen.files:
            raise UserError(f"braid bench {chosen.what} reads no files; `report` does: {chosen.files[0]}")
        clock = CPU if chosen.cpu_time else WALL
        write_figures(chosen.json, clock, WHAT[chosen.what](chosen, clock))


def _known(names: tuple[str, ...] | None, known: dict[str, Any], what: str) -> tuple[str, ...] | None:
    for name in names or ():
        if name not in known:
            raise UserError(f"--only: no {what} '{name}'.{did_you_mean(name, known)} There are: {', '.join(known)}")
    return names


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(positive(word) for word in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=(*WHAT, "report"), help="what to measure, or `report` to draw figures")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="for `report`: what --json wrote")
    parser.add_argument("--quick", action="store_true", help="short lengths and few rounds, within 50 seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    parser.add_argument(
        "--lengths", type=_lengths, metavar="N,N", help="tokens of a row; decode: of the cache, loss: of the batch"
    )
    parser.add_argument("--only", type=_names, metavar="NAME,NAME", help="these mixers or models alone")
    parser.add_argument("--forward", action="store_true", help="mixers: no backward passes")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count CPU time, which other processes disturb less; with OMP_NUM_THREADS=1",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("docs"), metavar="FOLDER", help="report: where the curves go; docs"
    )


VERBS = {
    "bench": Verb(
        _bench,
        _arguments,
        "Measure mixers, decoding, training steps and the loss beside what one would use instead.",
        "braid bench mixers --quick",
    ),
}
