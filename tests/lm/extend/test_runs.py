"""Whole extensions in one process: what is kept, how they resume, what a user gets."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kernels import interval_attention
from lm.data.prepare import prepare
from lm.errors import UserError
from lm.export import export_run
from lm.model.documents import Documents
from lm.run_file import ExtensionFile, load_run_file
from lm.train import manifest
from lm.train.log import read_metrics
from lm.train.loop import train

EXACT = ("step", "loss", "learning_rate", "grad_norm", "tokens", "targets", "skipped")


def exact(folder: Path) -> list[dict[str, Any]]:
    return [{key: record[key] for key in EXACT} for record in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize(("base_folder", "stage"), [("tied", 3), ("untied", 2), ("braid", 0)], indirect=["base_folder"])
def test_a_run_learns_resumes_and_is_exported(run_path: Path, tmp_path: Path, stage: int) -> None:
    zero = [f"deepspeed.zero_stage={stage}"]
    if stage == 3:  # without a threshold of 0, ZeRO-3 never shards parameters as small as these
        zero.append("deepspeed.zero_optimization.stage3_param_persistence_threshold=0")
    run = load_run_file(run_path, zero)
    assert isinstance(run, ExtensionFile)
    train(run)
    out = tmp_path / "out"
    whole = exact(out)
    assert whole[-1]["loss"] < whole[0]["loss"] - 0.5

    names = {n for n, p in run.trainee.build().model.named_parameters() if p.requires_grad}
    state = load_file(manifest.checkpoints(out / "checkpoints")[0] / "state-00000.safetensors")
    assert {name.partition("/")[2] for name in state} == names
    assert set(load_file(out / "model" / "model.safetensors")) == names

    for _ in range(2):  # the second over the first
        export_run(out, tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    validation = prepare(run.data).validation
    assert validation is not None
    batch = validation.batches.rows(range(validation.num_rows))
    with torch.no_grad():
        position_ids = Documents.from_lengths(batch.lengths).position[None]
        logits = model(batch.tokens.view(1, -1), position_ids=position_ids, use_cache=False).logits[0]
    loss = torch.nn.functional.cross_entropy(logits, batch.targets.flatten())
    assert loss.item() == pytest.approx(read_metrics(out / "metrics.jsonl")[-1]["validation_loss"], rel=1e-4)

    newest, older = manifest.checkpoints(out / "checkpoints")
    shutil.rmtree(newest)
    (out / "complete.json").unlink()
    train(load_run_file(run_path, zero))
    assert exact(out) == whole
    assert older.exists()


@pytest.mark.usefixtures("cpp_kernels")
@pytest.mark.parametrize("base_folder", ["tied", "braid"], indirect=True)
def test_a_kernel_that_refuses_the_bases_heads_ends_the_run_before_it_reads_data(
    run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BRAID_ATTENTION_BACKEND", raising=False)
    run = load_run_file(run_path, ["train.attention_backend=cpp", "train.precision=bf16"])
    with pytest.raises(UserError, match=r"^train\.attention_backend: .*'cpp' cannot serve this call: "):
        train(run)
    interval_attention.prefer(None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("base_folder", ["untied"], indirect=True)
def test_a_base_with_other_weights_does_not_resume(run_path: Path, tmp_path: Path, base_folder: Path) -> None:
    train(load_run_file(run_path, ["train.steps=4"]))
    moved = tmp_path / "moved"
    shutil.copytree(base_folder, moved)
    train(load_run_file(run_path, ["train.steps=6", f"base.path={moved}"]))
    weights = load_file(moved / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    weights[name][0] += 1
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"base\.path: the weights of .*moved are not those"):
        train(load_run_file(run_path, ["train.steps=8", f"base.path={moved}"]))
    with pytest.raises(UserError, match=r"extend\.group_size was 16 and is now 32"):
        train(load_run_file(run_path, ["extend.group_size=32"]))


@pytest.mark.parametrize("base_folder", ["tied"], indirect=True)
def test_a_run_learns_in_bf16(run_path: Path, tmp_path: Path) -> None:
    train(load_run_file(run_path, ["train.precision=bf16", "deepspeed.zero_stage=1"]))
    losses = [record["loss"] for record in read_metrics(tmp_path / "out" / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.5
