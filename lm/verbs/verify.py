"""The verb that checks whether a run can be gone on with exactly."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lm.arguments import positive
from lm.errors import UserError
from lm.verbs.verb import Verb

if TYPE_CHECKING:
    from lm.run_file import AnyRun


def _verify(chosen: argparse.Namespace) -> None:
    from lm.train import distributed
    from lm.train.file_names import RUN_FILE
    from lm.train.verify import verify

    config = chosen.run_folder / RUN_FILE
    if not config.is_file():
        raise UserError(f"{chosen.run_folder} is not the folder of a run: it has no {RUN_FILE}")
    try:
        run = _with_its_text(config, chosen)
    except UserError as error:
        raise UserError(f"{error}{_paths_from(config)}") from None
    verdict = verify(run, chosen.step)
    distributed.leave_at_exit()
    if distributed.launched_rank() == 0:
        print(verdict)
    if not verdict.holds:
        raise SystemExit(1)


def _with_its_text(config: Path, chosen: argparse.Namespace) -> AnyRun:
    from lm.run_file import load_run_file, missing_sources

    own = [f"train.output_dir={json.dumps(str(chosen.run_folder))}", "log.wandb=disabled", *chosen.overrides]
    run = load_run_file(config, own)
    if problems := missing_sources(run, config, own):
        raise UserError("\n".join(problems))
    return run


def _paths_from(config: Path) -> str:
    """What to say where paths of a run's file lead nowhere because the command is called elsewhere."""
    from lm.train.folder import leaves
    from lm.yaml_tree import read_tree

    values = dict(leaves(read_tree(config).values))
    paths = [Path(str(value)) for key, value in values.items() if key.endswith(".path")]
    folder, output = config.parent.resolve(), Path(str(values.get("train.output_dir")))
    known = not output.is_absolute() and folder.parts[len(folder.parts) - len(output.parts) :] == output.parts
    home = (folder, *folder.parents)[len(output.parts)] if known else None
    if home == Path.cwd() or all(path.is_absolute() or path.exists() for path in paths):
        return ""
    where = "where the run was made" if home is None else f"in {home}, where the run was made"
    return f"\nRelative paths count from where a command is called: call it {where}, or give the paths as key=value."


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
