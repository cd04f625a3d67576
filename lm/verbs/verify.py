"""The verb that checks whether a run can be gone on with exactly."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lm.arguments import positive
from lm.errors import UserError
from lm.verbs.verb import Verb


def _verify(chosen: argparse.Namespace) -> None:
    from lm.run_file import load_run_file
    from lm.train import distributed
    from lm.train.file_names import RUN_FILE
    from lm.train.verify import verify

    config = chosen.run_folder / RUN_FILE
    if not config.is_file():
        raise UserError(f"{chosen.run_folder} is not the folder of a run: it has no {RUN_FILE}")
    own = [f"train.output_dir={json.dumps(str(chosen.run_folder))}", "log.wandb=disabled"]
    verdict = verify(load_run_file(config, [*own, *chosen.overrides]), chosen.step)
    distributed.leave_at_exit()
    if distributed.launched_rank() == 0:
        print(verdict)
    if not verdict.holds:
        raise SystemExit(1)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the train.output_dir of a run")
    parser.add_argument(
        "--step", type=positive, metavar="N", help="of the checkpoint (default: the newest that can be verified)"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="changes to its run file, for example deepspeed.zero_stage=0 or data.sources.0.path=moved/text",
    )


VERBS = {
    "verify": Verb(
        _verify,
        _arguments,
        "Replay one step from a checkpoint; compare its batch, loss and gradient with the stored ones.",
        "braid verify runs/quickstart",
    ),
}
