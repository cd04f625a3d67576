"""The moving average of weights: at every stage, through checkpoints, in evaluations and exports."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lm.errors import UserError
from lm.export import export_run
from lm.run_file import RunFile
from lm.train import checkpoint
from lm.train.checkpoint import Counters
from lm.train.dashboard import SECTIONS
from lm.train.engine import Engine
from lm.train.log import read_metrics
from lm.train.loop import train

from .tiny import LR, make_engine, micro_batches, steps

DECAY = 0.4


def parts(engine: Engine, kind: str) -> dict[str, Tensor]:
    return {fragment.name: fragment.parts[kind].clone() for fragment in engine.fragments()}


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_the_average_of_the_weights_after_each_update(stage: int, precision: str, tmp_path: Path) -> None:
    engine = make_engine(stage, precision, train={"average_decay": DECAY})
    expected = parts(engine, "weight")
    for step in range(4):
        steps(engine, step, step + 1)
        decay = min(DECAY, (2 + step) / (11 + step))
        expected = {
            name: decay * expected[name] + (1 - decay) * weight for name, weight in parts(engine, "weight").items()
        }
    engine.step(micro_batches(9, poisoned=True), LR)  # a step that is skipped does not count
    for name, average in parts(engine, "average").items():
        assert torch.allclose(average, expected[name], atol=1e-6), name
    folder = checkpoint.save(tmp_path, Counters(step=5), engine.buffers(), engine.world)
    resumed = make_engine(stage, precision, train={"average_decay": DECAY})
    checkpoint.load(folder, resumed.fragments())
    resumed.restored(engine.adam_step)
    steps(engine, 5, 7)
    steps(resumed, 5, 7)
    for name, average in parts(engine, "average").items():
        assert torch.equal(average, parts(resumed, "average")[name])


@pytest.mark.parametrize("stage", range(4))
def test_the_model_has_it_for_a_while(stage: int) -> None:
    engine = make_engine(stage, train={"average_decay": 0.0})
    plain = make_engine(stage)
    steps(engine, 0, 2)
    steps(plain, 0, 2)
    batch = micro_batches(7)[0]
    for fragment in engine.fragments():  # something that is neither
        fragment.parts["average"].mul_(0.5)
    with torch.no_grad():
        before = engine.forward(batch).loss
        with engine.averaged():
            inside = engine.forward(batch).loss
        assert engine.forward(batch).loss == before
    assert inside != before
    assert steps(engine, 2, 4) == steps(plain, 2, 4)


def test_a_run_evaluates_and_exports_it(
    make_run: Callable[..., RunFile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("train.steps=8", "train.average_decay=0.9", "train.evaluate_every=4")
    train(run)
    records = read_metrics(tmp_path / "out" / "metrics.jsonl")
    losses = [(r["validation_loss"], r["average_validation_loss"]) for r in records if "validation_loss" in r]
    assert len(losses) == 2
    assert all(averaged > plain for plain, averaged in losses)  # it lags behind while the loss falls fast
    assert "average_validation_loss" in SECTIONS["Training"][0].chosen(records[-1])
    assert "averaged weights" in (tmp_path / "out" / "report.html").read_text()
    assert f"with averaged weights {losses[0][1]:.4f}" in capsys.readouterr().out
    export_run(tmp_path / "out", tmp_path / "plain")
    export_run(tmp_path / "out", tmp_path / "average", average=True)
    plain, averaged = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "average"))
    assert plain.keys() == averaged.keys()
    assert any(not torch.equal(plain[name], averaged[name]) for name in plain)


def test_a_run_may_begin_to_keep_it_and_one_without_has_none_to_export(
    make_run: Callable[..., RunFile], tmp_path: Path
) -> None:
    train(make_run("train.steps=4"))
    with pytest.raises(UserError, match=r"holds no average of .*: set train.average_decay"):
        export_run(tmp_path / "out", tmp_path / "average", average=True)
    train(make_run("train.steps=6", "train.average_decay=0.5"))
    export_run(tmp_path / "out", tmp_path / "average", average=True)
