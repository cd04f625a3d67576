"""The verb that measures against peers. The benchmarks, and torch with them, are imported when it runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.arguments import lengths, one_of, refuse, words
from lm.errors import UserError, did_you_mean
from lm.verbs.verb import Verb

if TYPE_CHECKING:
    from benchmarks.measure import Clock, Save


def _mixers(chosen: argparse.Namespace, clock: Clock, save: Save) -> None:
    from benchmarks import mixers

    names = _known(chosen.only, mixers.kinds(1), "mixer")
    mixers.main(chosen.quick, chosen.lengths, names, [False] if chosen.forward else [False, True], clock, save)


def _decode(chosen: argparse.Namespace, clock: Clock, save: Save) -> None:
    from benchmarks import decode

    decode.main(chosen.quick, chosen.lengths[0] if chosen.lengths else None, clock, save)


def _train(chosen: argparse.Namespace, clock: Clock, save: Save) -> None:
    from benchmarks import train

    train.main(chosen.quick, chosen.lengths, _known(chosen.only, train.PATTERNS, "model"), clock, save)


def _loss(chosen: argparse.Namespace, clock: Clock, save: Save) -> None:
    from benchmarks import loss

    loss.main(chosen.quick, chosen.lengths[0] if chosen.lengths else None, clock, save)


WHAT: dict[str, Callable[[argparse.Namespace, Clock, Save], None]] = {
    "mixers": _mixers,
    "decode": _decode,
    "train": _train,
    "loss": _loss,
}


OPTIONS = {
    "lengths": ("mixers", "decode", "train", "loss"),
    "only": ("mixers", "train"),
    "forward": ("mixers",),
    "quick": tuple(WHAT),
    "json": tuple(WHAT),
    "cpu_time": tuple(WHAT),
    "output": ("report",),
}
"""Which benchmarks take which options."""
ONE_LENGTH = ("decode", "loss")


def _bench(chosen: argparse.Namespace) -> None:
    for name, takers in OPTIONS.items():
        if chosen.what not in takers:
            refuse(chosen, [name], ", ".join(takers))
    if chosen.what in ONE_LENGTH and len(chosen.lengths or ()) > 1:
        raise UserError(f"braid bench {chosen.what}: --lengths takes one length here")
    if chosen.what == "report":
        from benchmarks import report

        report.main(chosen.files, chosen.output or Path("docs"))
    else:
        from benchmarks.measure import CPU, WALL, write_figures

        if chosen.files:
            raise UserError(f"braid bench {chosen.what} reads no files; `report` does: {chosen.files[0]}")
        if chosen.json is not None:
            _require_place(chosen.json)
        clock = CPU if chosen.cpu_time else WALL
        WHAT[chosen.what](chosen, clock, partial(write_figures, chosen.json, clock))


def _require_place(file: Path) -> None:
    """Raises UserError where the figures could not be written, before they are taken."""
    found = next(place for place in (file, *file.absolute().parents) if place.exists())
    if found == file and not file.is_file():
        raise UserError(f"--json: {file} is a folder: name a file in it")
    if not os.access(found, os.W_OK) or (found != file and not found.is_dir()):
        raise UserError(f"--json: {file} cannot be written: choose another place")


def _known(names: tuple[str, ...] | None, known: dict[str, Any], what: str) -> tuple[str, ...] | None:
    for name in names or ():
        if name not in known:
            raise UserError(f"--only: no {what} '{name}'.{did_you_mean(name, known)} There are: {', '.join(known)}")
    return names


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        type=one_of((*WHAT, "report")),
        metavar="WHAT",
        help=f"{', '.join(WHAT)}: what to measure; report: draw figures",
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="for `report`: what --json wrote")
    parser.add_argument("--quick", action="store_true", help="short lengths and few rounds, within 50 seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too, as each length is done")
    parser.add_argument(
        "--lengths", type=lengths, metavar="N,N", help="tokens of a row; decode: of the cache, loss: of the batch"
    )
    parser.add_argument("--only", type=words, metavar="NAME,NAME", help="these mixers or models alone")
    parser.add_argument("--forward", action="store_true", help="mixers: no backward passes")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count CPU time, which other processes disturb less; with OMP_NUM_THREADS=1",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="report: where the curves go (default: docs)")


VERBS = {
    "bench": Verb(
        _bench,
        _arguments,
        "Measure mixers, decoding, training steps and the loss beside what one would use instead.",
        "braid bench mixers --quick",
    ),
}
