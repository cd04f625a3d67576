"""Extensions on two ranks that share frozen and trained parameters (ZeRO-3), and then hold each row together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from lm.export import export_run, read_run
from lm.model.documents import Documents
from lm.run_file import load_run_file
from lm.train.log import read_metrics
from lm.train.loop import train

from .conftest import TARGET, save_base, write_run

ROOT = Path(__file__).parents[3]
KINDS = ("tied", "untied")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By kind of base a folder with `base`, the run file, and what two ranks left in `out`; the first has `shared`."""
    root = tmp_path_factory.mktemp("launched")
    runs = {}
    for kind in KINDS:
        save_base(kind, root / kind / "base")
        runs[kind] = write_run(root / kind / "base", root / kind)
    launcher = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = ROOT / "tests" / "lm" / "extend" / "launch_script.py"
    subprocess.run([*launcher, script, *runs.values()], env=environment, check=True, timeout=300)
    return {kind: root / kind for kind in KINDS}


@pytest.mark.launch
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_as_one(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    train(load_run_file(folders[kind] / "extend.yaml", [f"train.output_dir={tmp_path}"]))
    one = read_metrics(tmp_path / "metrics.jsonl")
    for output in ("out", "shared") if kind == KINDS[0] else ("out",):
        two = read_metrics(folders[kind] / output / "metrics.jsonl")
        for key in ("loss", "grad_norm"):
            assert [record[key] for record in two] == pytest.approx([record[key] for record in one], rel=1e-4), output
        assert two[-1]["validation_loss"] == pytest.approx(one[-1]["validation_loss"], rel=1e-4), output


@pytest.mark.launch
@pytest.mark.parametrize("kind", KINDS)
def test_what_they_trained_is_the_adapter_and_the_merged_model(
    folders: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    out = folders[kind] / "out"
    export_run(out, tmp_path / "merged")
    export_run(out, tmp_path / "adapter", adapter_only=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    config = AutoConfig.from_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(folders[kind] / "base", config=config)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    run = read_run(out)
    trained = run.trainee.build().model.eval()
    trained.load_state_dict(run.weights, strict=False)
    ids = torch.randint(0, 250, (TARGET,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = trained(ids, Documents.from_lengths([TARGET]))
        for model in (merged, adapted):
            assert (model(ids[None]).logits[0] - expected).abs().max() < 1e-5 * expected.abs().max()
    original = AutoModelForCausalLM.from_pretrained(folders[kind] / "base", config=config).eval()
    with torch.no_grad():
        assert (original(ids[None]).logits[0] - expected).abs().max() > 1e-2, "and it is not the base"
