"""Verbs around a run that is under way or done: watch it, and make its project's dashboard."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm.verbs.verb import Verb


def _watch(chosen: argparse.Namespace) -> None:
    from lm.train.watch.live import watch

    watch(chosen.run_folder)


def _dashboard(chosen: argparse.Namespace) -> None:
    from lm.train.wandb_run import save_wandb_view

    print(save_wandb_view(chosen.project, chosen.entity))


def _watch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the train.output_dir of a run")


def _dashboard_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", metavar="PROJECT", help="the log.project of the runs")
    parser.add_argument("--entity", metavar="NAME", help="user or team that it belongs to (default: the login's own)")


VERBS = {
    "watch": Verb(
        _watch,
        _watch_arguments,
        "Follow a run in the terminal, with live curves; q leaves it.",
        "braid watch runs/quickstart",
    ),
    "dashboard": Verb(
        _dashboard,
        _dashboard_arguments,
        "Save a view with Braid's charts in a Weights & Biases project (needs a login).",
        "braid dashboard braid",
    ),
}
