"""Muon, the average of weights, stages and a growing batch on two ranks are what they are on one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lm.run_file import RunFile, load_run_file
from lm.train import manifest
from lm.train.log import read_metrics
from lm.train.loop import train

from .test_launchers import SCRIPT, launch

pytestmark = pytest.mark.launch

STEPS = 8
OVERRIDES = (
    f"train.steps={STEPS}",
    "train.micro_batch_size=2",
    "train.stages=[{steps: 3}, {sequence_length: 64, lr: 5.0e-3}]",
    "train.batch_warmup={tokens: 128, steps: 2}",
    "train.average_decay=0.5",
    "train.evaluate_every=4",
    "train.evaluate_tokens=512",
    "train.checkpoint_every=5",
    "train.sample_tokens=0",
    "optimizer.kind=muon",
)
COMPARED = ("loss", "grad_norm", "tokens", "learning_rate", "batch_hash", "validation_loss", "average_validation_loss")


def check_same(folder: Path, alone: Path) -> None:
    found, wanted = (read_metrics(output / "metrics.jsonl") for output in (folder, alone))
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    assert sum("average_validation_loss" in record for record in found) == STEPS // 4
    for record, expected in zip(found, wanted, strict=True):
        for key in COMPARED:
            assert record.get(key) == pytest.approx(expected.get(key), abs=1e-5), (folder.name, record["step"], key)


def test_two_ranks_train_as_one_does_and_one_goes_on(
    run_path: Path, make_run: Callable[..., RunFile], tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    train(load_run_file(run_path, [f"train.output_dir={alone}", *OVERRIDES]))
    launch(
        *("torchrun", "--standalone", "--nproc_per_node=2", str(SCRIPT), str(run_path), str(tmp_path)),
        *("0", "1", "2", "3", *OVERRIDES),
    )
    for stage in range(4):
        check_same(tmp_path / f"stage-{stage}", alone)

    # Put back into the midst of the second stage at ZeRO 2, one rank without ZeRO goes on.
    folder = tmp_path / "stage-2"
    (folder / "complete.json").unlink()
    newest, *_ = manifest.checkpoints(folder / "checkpoints")
    assert manifest.step_of(newest) == STEPS
    shutil.rmtree(newest)
    train(make_run(f"train.output_dir={folder}", *OVERRIDES))
    check_same(folder, alone)
