"""Runs from a pretrained model whose context stays: everything holds for them that holds for extensions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig

from lm.data.prepare import prepare
from lm.errors import UserError
from lm.export import export_run
from lm.model.documents import Documents
from lm.run_file import ExtensionFile, load_run_file
from lm.train import manifest
from lm.train.log import read_metrics
from lm.train.loop import train

SHORT = ["extend=null", "data.sequence_length=64", "train.micro_batch_size=4"]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]


def held_out_loss(run: ExtensionFile, folder: Path) -> float:
    """Of an exported folder, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    validation = prepare(run.data).validation
    assert validation is not None
    batch = validation.batches.rows(range(validation.num_rows))
    positions = Documents.from_lengths(batch.lengths).position[None]
    with torch.no_grad():
        logits = model(batch.tokens.view(1, -1), position_ids=positions, use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits, batch.targets.flatten()).item()


@pytest.mark.parametrize("base_folder", ["tied", "braid"], indirect=True)
@pytest.mark.parametrize("lora", [["lora=null"], []], ids=["everything", "lora"])
def test_a_run_without_a_longer_context(run_path: Path, base_folder: Path, tmp_path: Path, lora: list[str]) -> None:
    run = load_run_file(run_path, [*SHORT, *lora])
    assert isinstance(run, ExtensionFile)
    plan = run.trainee.plan(64, torch.float32)
    sizes = {p: p.numel() for p in run.trainee.build().model.parameters()}
    assert (plan.parameters, plan.layers[-1].reach) == (sum(sizes.values()), 64)
    assert plan.parameters - plan.frozen_parameters == sum(n for p, n in sizes.items() if p.requires_grad)

    train(run)
    out = tmp_path / "out"
    whole = losses(out)
    assert whole[-1] < whole[0] - 0.5
    export_run(out, tmp_path / "exported")
    before, after = (AutoConfig.from_pretrained(folder) for folder in (base_folder, tmp_path / "exported"))
    assert after.max_position_embeddings == before.max_position_embeddings == 64
    assert getattr(after, "rope_parameters", None) == getattr(before, "rope_parameters", None)
    expected = read_metrics(out / "metrics.jsonl")[-1]["validation_loss"]
    assert held_out_loss(run, tmp_path / "exported") == pytest.approx(expected, rel=1e-4)

    shutil.rmtree(manifest.checkpoints(out / "checkpoints")[0])
    (out / "complete.json").unlink()
    train(load_run_file(run_path, [*SHORT, *lora]))
    assert losses(out) == whole


@pytest.mark.parametrize("base_folder", ["untied"], indirect=True)
def test_its_adapter_fits_the_base_as_it_is(run_path: Path, base_folder: Path, tmp_path: Path) -> None:
    run = load_run_file(run_path, [*SHORT, "train.steps=2"])
    train(run)
    export_run(tmp_path / "out", tmp_path / "adapter", adapter_only=True)
    export_run(tmp_path / "out", tmp_path / "merged")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokens = torch.arange(64)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, merged(tokens).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("base_folder", ["untied"], indirect=True)
def test_what_cannot_work_is_refused_with_its_place(run_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.sequence_length: 128 exceeds the base's context of 64: shorten"):
        load_run_file(run_path, ["extend=null"])
    train(load_run_file(run_path, ["train.steps=2"]))
    with pytest.raises(UserError, match=r"extend\.target_length was 256 and is now None"):
        train(load_run_file(run_path, SHORT))
    MistralConfig(sliding_window=8, num_hidden_layers=2).save_pretrained(tmp_path / "windowed")
    with pytest.raises(UserError, match=r"command line.*base\.path: .*window of 8.*`braid import` makes a Braid model"):
        load_run_file(run_path, [*SHORT, f"base.path={tmp_path / 'windowed'}"])
