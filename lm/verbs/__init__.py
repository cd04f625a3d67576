"""The verbs of the `braid` command, by name, in the order of its help."""

from __future__ import annotations

from lm.verbs import backends, bench, data, evaluation, grafting, measure, models, runs, verify, watching
from lm.verbs.verb import Verb

__all__ = ["VERBS", "Verb"]

VERBS: dict[str, Verb] = {
    **{name: runs.VERBS[name] for name in ("train", "plan")},
    **data.VERBS,
    **watching.VERBS,
    **grafting.VERBS,
    **models.VERBS,
    **measure.VERBS,
    **evaluation.VERBS,
    **verify.VERBS,
    **backends.VERBS,
    **bench.VERBS,
    "schema": runs.VERBS["schema"],
}
