"""TensorBoard's files, read back by TensorBoard."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm.errors import UserError
from lm.train import tensorboard
from lm.train.dashboard import SECTIONS
from lm.train.log import RunLog


def test_figures_and_layout_are_there_and_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed_from in (0, 2):
        with RunLog(tmp_path, step=resumed_from, wandb="disabled", tensorboard=True) as log:
            for step in range(resumed_from + 1, 5):
                log.write({"step": step, "loss": 4.0 / step, "layers/entropy/00": 2.0, "grad_norm": float("nan")})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (step, pytest.approx(4.0 / step)) for step in range(1, 5)
    ]
    assert set(events.Tags()["scalars"]) == {"loss", "layers/entropy/00"}
    layout = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    for panels in SECTIONS.values():
        for panel in panels:
            assert panel.title.encode() in layout


def test_steps_that_a_run_took_back_are_hidden(tmp_path: Path) -> None:
    """Those of a start that ended before its first checkpoint, and those that the guard went back behind."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, wandb="disabled", tensorboard=True) as log:
        for step in (1, 2, 3):
            log.write({"step": step, "loss": 9.0})
    with RunLog(tmp_path, wandb="disabled", tensorboard=True) as log:
        for step in (1, 2, 3):
            log.write({"step": step, "loss": 1.0})
        log.rewind({"step": 1, "spikes": 1, "guard": "rewind"})
        log.write({"step": 2, "loss": 2.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.0)]


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"log\.tensorboard needs a package"):
        RunLog(tmp_path, wandb="disabled", tensorboard=True)
