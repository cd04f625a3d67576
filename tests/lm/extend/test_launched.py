"""An extension on two ranks that share frozen and trained parameters (ZeRO-3)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from lm.export import export_run
from lm.run_file import load_run_file
from lm.train.log import read_metrics
from lm.train.loop import train

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tests" / "lm" / "train" / "stages_script.py"


@pytest.mark.launch
@pytest.mark.parametrize("base_folder", ["tied"], indirect=True)
def test_two_ranks_train_as_one_and_leave_one_model(run_path: Path, base_folder: Path, tmp_path: Path) -> None:
    launcher = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*launcher, SCRIPT, run_path, tmp_path, "3"], env=environment, check=True, timeout=300)
    train(load_run_file(run_path))
    two, one = (read_metrics(tmp_path / folder / "metrics.jsonl") for folder in ("stage-3", "out"))
    for key in ("loss", "grad_norm"):
        assert [record[key] for record in two] == pytest.approx([record[key] for record in one], rel=1e-4)

    export_run(tmp_path / "stage-3", tmp_path / "merged")
    export_run(tmp_path / "stage-3", tmp_path / "adapter", adapter_only=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    base = AutoModelForCausalLM.from_pretrained(base_folder, config=AutoConfig.from_pretrained(tmp_path / "adapter"))
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.arange(256)[None]
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, atol=1e-5, rtol=1e-5)
