"""The verb that compares an extension before and after. Torch and transformers are imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm.errors import UserError
from lm.verbs.verb import Verb


def _measure(chosen: argparse.Namespace) -> None:
    from lm.run_file import ExtensionFile, GraftFile, load_run_file
    from lm.train.folder import RunFolder

    config = RunFolder(chosen.run_folder).config
    if not config.is_file():
        raise UserError(f"{chosen.run_folder} is not a run's folder: it has no {config.name}")
    run = load_run_file(config, chosen.overrides)
    if isinstance(run, GraftFile):
        raise UserError(
            f"{chosen.run_folder}: the run grafted a model, whose context stays: its report has the held-out losses "
            "before and after"
        )
    if not isinstance(run, ExtensionFile):
        raise UserError(f"{chosen.run_folder}: the run trained a model from scratch: there is no before to measure")
    from eval.before_after import measure

    measure(run, chosen.run_folder, chosen.control, chosen.again)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the train.output_dir of a finished extension")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # without it argparse says that one is required
        metavar="key=value",
        help="changes to its run file, for example measure.windows=8",
    )
    parser.add_argument(
        "--control", type=Path, metavar="RUN", help="a finished run with full attention and the same steps, beside it"
    )
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")


VERBS = {
    "measure": Verb(
        _measure,
        _arguments,
        "Compare an extension before and after, in its report: perplexity, passkey, cost; called again, go on.",
        "braid measure runs/extend-smollm2 --control runs/full-attention",
        resumes=True,
    ),
}
