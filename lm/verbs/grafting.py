"""The verb that puts other mixers into a pretrained model."""

from __future__ import annotations

import argparse

from lm.errors import UserError
from lm.verbs.runs import config_arguments, run_with_its_text, start
from lm.verbs.verb import Verb


def _graft(chosen: argparse.Namespace) -> None:
    run = run_with_its_text(chosen)
    from lm.run_file import GraftFile

    if not isinstance(run, GraftFile):
        raise UserError(
            f"{chosen.config}: it has no graft section, which says what layers get which mixers: add one "
            "(docs/graft.md), or start it with `braid train`"
        )
    start(run)


VERBS = {
    "graft": Verb(
        _graft,
        config_arguments,
        "Replace mixers of a pretrained model: regress the new ones, then train the whole; called again, resume.",
        "braid graft configs/graft-smollm2.yaml train.steps=20",
        resumes=True,
    ),
}
