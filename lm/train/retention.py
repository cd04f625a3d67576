"""Which checkpoints of a run are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from lm.train.checkpoint import Counters
from lm.train.manifest import step_of
from lm.train.options import TrainOptions


def kept(found: Mapping[Path, Counters], options: TrainOptions) -> dict[Path, str]:
    """The folders that stay, each with the strongest reason for it.

    found: every checkpoint, newest first, with its counters. The newest `keep_checkpoints` stay, every one at a
    multiple of `keep_every`, that with the lowest held-out loss, and those that the guard went back to.
    """
    newest = list(found)[: options.keep_checkpoints]
    reasons = dict.fromkeys(newest, "newest")
    if best := _best(found, options.evaluate_tokens) if options.keep_best else None:
        reasons[best] = "best"
    before_spikes = {step for counters in found.values() for step in rewound_to(counters)}
    for folder in found:
        if options.keep_every is not None and step_of(folder) % options.keep_every == 0:
            reasons[folder] = "for ever"
        if step_of(folder) in before_spikes:
            reasons[folder] = "before a spike"
    return reasons


def dropped(found: Mapping[Path, Counters], options: TrainOptions) -> list[Path]:
    """The folders that do not stay."""
    reasons = kept(found, options)
    return [folder for folder in found if folder not in reasons]


def spare(found: Mapping[Path, Counters], options: TrainOptions) -> list[Path]:
    """Those that a full disk may cost, oldest first: kept for their number alone, and not the newest of all."""
    reasons = kept(found, options)
    return [folder for folder in reversed(list(found)[1:]) if reasons.get(folder, "newest") == "newest"]


def rewound_to(counters: Counters) -> Sequence[int]:
    """The steps of the checkpoints that the guard went back to."""
    steps: Sequence[int] = counters.guard.get("rewound_to", ())
    return steps


def _best(found: Mapping[Path, Counters], tokens: int | None) -> Path | None:
    """That of the lowest finite loss over `tokens` of the held-out text: losses of other parts do not compare."""
    losses = {
        folder: counters.validation_loss
        for folder, counters in found.items()
        if counters.validation_loss is not None
        and isfinite(counters.validation_loss)
        and counters.validation_tokens == tokens
    }
    return min(losses, key=lambda folder: losses[folder], default=None)
