"""Training with rows that two ranks hold together is the training of one."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.exchange import Ranks
from lm.errors import UserError
from lm.model.shares import SequenceGroup
from lm.run_file import RunFile, load_run_file, to_yaml
from lm.train.data_phase import require_whole_rows
from lm.train.distributed import World
from lm.train.log import read_metrics
from lm.train.loop import train

MakeRun = Callable[..., RunFile]
SCRIPT = Path(__file__).with_name("sequence_script.py")
ROOT = Path(__file__).parents[3]
STEPS = 8
LEGS = ("2:1:2", "4:2:3", "6:2:0", "verify", "8:1:2")
CHANGES = (
    f"train.steps={STEPS}",
    "train.micro_batch_size=1",  # a batch of one row, so that ranks that share it cut it
    "train.evaluate_every=2",
    "train.sample_tokens=0",
    "observe.every=2",
    "observe.recall_every=2",
    "optimizer.schedule={kind: constant}",
)


@pytest.mark.launch
def test_a_run_goes_on_with_rows_that_ranks_share_and_back(run_path: Path, tmp_path: Path) -> None:
    """Two readers at ZeRO 2, then one row on both ranks at ZeRO 3 and 0, then two readers: the losses of one rank."""
    train(load_run_file(run_path, [f"train.output_dir={tmp_path / 'alone'}", *CHANGES]))
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(load_run_file(run_path, [f"train.output_dir={tmp_path / 'legs'}", *CHANGES])))
    torchrun = Path(sys.executable).with_name("torchrun")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [torchrun, "--standalone", "--nproc_per_node=2", SCRIPT, path, *LEGS]
    said = subprocess.run(command, env=environment, check=True, timeout=300, stdout=subprocess.PIPE, text=True).stdout
    assert "step 5 replayed from the checkpoint before it; to agree to the bit" in said
    assert said.count("  identical") == 3
    found, alone = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("legs", "alone"))
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    for record, wanted in zip(found, alone, strict=True):
        assert record.keys() == wanted.keys(), "the same is seen in the layers"
        equal = [key for key in wanted if key.startswith(("position_loss/", "validation_", "recall/"))]
        for key in ("loss", "grad_norm", "targets", *equal):
            assert record[key] == pytest.approx(wanted[key], abs=1e-5), (record["step"], key)


def shared_world(rank: int, size: int, shared: int) -> World:
    alone = World(rank, size, torch.device("cpu"), None)
    return replace(alone, sequence=SequenceGroup(Ranks(None, rank % shared, shared), (32,)))  # type: ignore[arg-type]


def test_neighbouring_ranks_read_the_same_rows() -> None:
    worlds = [shared_world(rank, 6, 2) for rank in range(6)]
    assert [world.reader for world in worlds] == [0, 0, 1, 1, 2, 2]
    assert {world.readers for world in worlds} == {3}


def test_a_batch_is_divided_among_groups(make_run: MakeRun) -> None:
    require_whole_rows(make_run("train.sequence_parallel=2"), 4)


@pytest.mark.parametrize(
    ("overrides", "ranks", "message"),
    [
        (["train.sequence_parallel=2"], 1, "1 rank cannot form groups of 2 that share a sequence"),
        (["train.sequence_parallel=4"], 6, "start a multiple of 4 ranks, or set it to a number that divides 6"),
        (["train.sequence_parallel=2"], 6, "8 rows of 32, which 3 groups of 2 ranks cannot share equally"),
    ],
)
def test_ranks_that_do_not_divide_are_refused(
    make_run: MakeRun, overrides: list[str], ranks: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        require_whole_rows(make_run(*overrides), ranks)


def test_a_row_of_fewer_tokens_than_ranks_is_refused_when_the_file_is_read(make_run: MakeRun) -> None:
    with pytest.raises(UserError, match=r"train\.sequence_parallel is 33, more than data\.sequence_length 32"):
        make_run("train.sequence_parallel=33")
