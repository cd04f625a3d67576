"""Verbs around a run file: train, plan, schema. Torch and DeepSpeed are imported by those that need them."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lm.arguments import positive, steps
from lm.errors import UserError
from lm.verbs.verb import Verb

if TYPE_CHECKING:
    from lm.run_file import AnyRun


def _train(chosen: argparse.Namespace) -> None:
    if chosen.profile is not None:
        chosen.overrides = [*chosen.overrides, f"train.profile={list(chosen.profile)}"]
    start(run_with_its_text(chosen))


def start(run: AnyRun) -> None:
    """Trains what the run file describes, from where it stands."""
    from lm.run_file import ExtensionFile, GraftFile

    hook = None
    if run.evaluations is not None:
        from eval.live import LiveEvaluation

        if isinstance(run, ExtensionFile):
            from lm.extend.base import check_angles

            check_angles(run.trainee.config, max(run.evaluations.lengths), "evaluations.lengths")
        hook = LiveEvaluation(run.evaluations, run.train.micro_batch_size * run.data.sequence_length)
    if isinstance(run, GraftFile):
        from lm.graft.stages import graft  # after the mistakes of the run file, which need not wait for it

        graft(run, hook)
        return
    from lm.train.loop import train

    train(run, hook=hook)
    if isinstance(run, ExtensionFile) and run.measure is not None:
        from eval.before_after import measure_after_training

        measure_after_training(run)


def run_with_its_text(chosen: argparse.Namespace) -> AnyRun:
    """The run file of a command line. Raises UserError for it, and where the text that it names is missing."""
    from lm.run_file import load_run_file, missing_sources

    run = load_run_file(chosen.config, chosen.overrides)
    if problems := missing_sources(run, chosen.config, chosen.overrides):
        raise UserError("\n".join(problems))
    return run


def _plan(chosen: argparse.Namespace) -> None:
    from lm.plan_table import plan_run, print_plan
    from lm.run_file import load_run_file, missing_sources

    run = load_run_file(chosen.config, chosen.overrides)
    for problem in missing_sources(run, chosen.config, chosen.overrides):
        print(f"to mend before training: {problem}", file=sys.stderr)
    ranks = chosen.world_size or run.train.sequence_parallel
    plan, memory = plan_run(run, ranks)
    if chosen.json:
        print(json.dumps(plan.to_json() | {"rank_memory": asdict(memory) | {"total": memory.total}}, indent=2))
    else:
        print_plan(run, plan, memory, ranks)


def _schema(chosen: argparse.Namespace) -> None:
    from lm.option_reference import reference
    from lm.run_file import json_schema

    print(reference(json_schema()) if chosen.markdown else json.dumps(json_schema(), indent=2))


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """A run file and changes to it."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the run file, for example configs/quickstart.yaml")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # without it argparse says that one is required
        metavar="key=value",
        help="changes to it by dotted path, for example train.steps=10",
    )


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)
    parser.add_argument(
        "--profile", type=steps, metavar="STEPS", help="write profiler traces of these steps, for example 10-12,100"
    )
    # Launchers add this one; ranks read the environment instead.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)
    parser.add_argument(
        "--world-size",
        type=positive,
        metavar="N",
        help="ranks that share the memory (default: as few as the run can have)",
    )
    parser.add_argument("--json", action="store_true", help="figures for programs instead of a table")


def _schema_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="a reference for people instead")


VERBS = {
    "train": Verb(
        _train,
        _train_arguments,
        "Pretrain a model from a run file; called again, resume.",
        "braid train configs/quickstart.yaml train.steps=10",
        resumes=True,
    ),
    "plan": Verb(
        _plan,
        _plan_arguments,
        "Print what a run file costs, layer by layer, without training.",
        "braid plan configs/rat-swa-1.3b.yaml --world-size 16",
    ),
    "schema": Verb(
        _schema,
        _schema_arguments,
        "Print the JSON schema of run files, for editors, or all keys as a reference.",
        "braid schema > run-file.schema.json",
    ),
}
