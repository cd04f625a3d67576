"""A mistake is said once, whichever ranks meet it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lm.errors import RankError, UserError
from lm.train import distributed
from lm.train.refusal import said_once

SCRIPT = Path(__file__).with_name("refusal_script.py")
ROOT = Path(__file__).parents[3]


@pytest.mark.launch
def test_of_two_ranks_one_says_what_either_meets(run_path: Path, tmp_path: Path) -> None:
    torchrun = Path(sys.executable).with_name("torchrun")
    ended = subprocess.run(
        [torchrun, "--standalone", "--nproc_per_node=2", SCRIPT, run_path, tmp_path / "out"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    said = [line for line in ended.stderr.splitlines() if not line.startswith(("W", "[W", "*"))]
    assert [line for line in said if not line.startswith("interrupted")] == [
        "rank 1: machine of one",
        "both machines",
        "apart, but alike",
        "rank 1: only one",
        "broken metrics",
        "no room",
    ]


def test_alone_or_before_ranks_have_met_each_raises_its_own() -> None:
    with pytest.raises(UserError, match=r"^wrong$") as error, said_once():
        raise UserError("wrong")
    assert not isinstance(error.value, RankError)


@pytest.mark.parametrize(("local_rank", "says"), [("2", True), ("3", False)])
def test_the_first_rank_without_a_gpu_says_so(local_rank: str, says: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(UserError, match=r"has 2 GPUs, too few .* at most one rank for each GPU") as error:
        distributed.start()
    assert isinstance(error.value, RankError) == says
