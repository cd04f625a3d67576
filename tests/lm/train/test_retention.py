"""Which checkpoints stay."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lm.train.checkpoint import Counters
from lm.train.options import TrainOptions
from lm.train.retention import dropped, kept, spare


def options(**values: Any) -> TrainOptions:
    return TrainOptions.model_validate({"output_dir": "unused", "steps": 100, "global_batch_tokens": 32, **values})


def checkpoints(losses: dict[int, float | None], rewound_to: tuple[int, ...] = ()) -> dict[Path, Counters]:
    found = {}
    for step in sorted(losses, reverse=True):
        memory = {"rewound_to": list(rewound_to)} if step == max(losses) else {}
        found[Path(f"step-{step:06d}")] = Counters(step=step, validation_loss=losses[step], guard=memory)
    return found


def steps(folders: Any) -> list[int]:
    return sorted(int(folder.name.removeprefix("step-")) for folder in folders)


def test_the_newest_are_kept() -> None:
    found = checkpoints(dict.fromkeys(range(5, 45, 5)))
    assert steps(kept(found, options())) == [35, 40]
    assert steps(kept(found, options(keep_checkpoints=3))) == [30, 35, 40]
    assert steps(spare(found, options(keep_checkpoints=3))) == [5, 10, 15, 20, 25, 30, 35]


def test_so_are_every_kth_the_best_and_those_before_spikes() -> None:
    losses = {5: 3.0, 10: None, 15: 1.0, 20: 2.0, 25: None, 30: 2.0, 35: None, 40: None}
    found = checkpoints(losses, rewound_to=(25,))
    assert steps(kept(found, options(keep_every=20, keep_best=True, evaluate_every=5))) == [15, 20, 25, 35, 40]
    assert steps(kept(found, options(keep_every=20))) == [20, 25, 35, 40]
    assert steps(spare(found, options(keep_every=20, keep_best=True, evaluate_every=5))) == [5, 10, 30, 35]


def test_the_best_has_a_finite_loss_over_the_same_text() -> None:
    """Of a part of the text a loss may be lower than of all, and NaN is lower than nothing."""
    found = checkpoints({5: 1.0, 10: 3.0, 15: 2.0, 20: 4.0, 25: 0.5, 30: math.nan})
    parts = {5: 64, 10: 32, 15: 32, 20: 32, 25: None, 30: 32}
    found = {folder: replace(at, validation_tokens=parts[at.step]) for folder, at in found.items()}
    best = {"keep_best": True, "evaluate_every": 5, "keep_checkpoints": 1}
    assert steps(kept(found, options(**best, evaluate_tokens=32))) == [15, 30]
    assert steps(kept(found, options(**best))) == [25, 30]
    assert steps(dropped(found, options(**best, evaluate_tokens=32))) == [5, 10, 20, 25]


def test_the_best_of_no_evaluations_is_refused() -> None:
    with pytest.raises(ValueError, match="keep_best finds nothing to compare: set evaluate_every"):
        options(keep_best=True)


def test_the_newest_of_all_is_never_spared() -> None:
    assert spare(checkpoints({5: None}), options()) == []
