"""Both stages of a graft: what they leave, that they resume to the bit, and that what is done stays done."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from lm.cli import main
from lm.data.prepare import prepare
from lm.errors import UserError
from lm.export import export_run
from lm.graft.regression import RegressionModel
from lm.graft.regression_run import RegressionRun
from lm.graft.stages import RegressionTraining, graft
from lm.model.documents import Documents
from lm.run_file import GraftFile, load_run_file
from lm.train.data_phase import require_whole_rows
from lm.train.log import RunLog, read_metrics
from lm.train.loop import train
from lm.train.spikes import Spikes

ROOT = Path(__file__).parents[3]
EXACT = ("step", "loss", "learning_rate", "grad_norm", "tokens", "layer_01", "layer_03")


def exact(folder: Path) -> list[dict[str, Any]]:
    return [{key: record.get(key) for key in EXACT} for record in read_metrics(folder / "metrics.jsonl")]


def held_out_loss(run: GraftFile, folder: Path) -> float:
    """Of a Hugging Face folder, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    validation = prepare(run.data).validation
    assert validation is not None
    batch = validation.batches.rows(range(validation.num_rows))
    positions = Documents.from_lengths(batch.lengths).position[None]
    with torch.no_grad():
        logits = model(batch.tokens.view(1, -1), position_ids=positions, use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits, batch.targets.flatten()).item()


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """The folder of a finished run, one's own."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def graft_into(out: Path, run_path: Path, *overrides: str) -> GraftFile:
    run = load_run_file(run_path, [f"train.output_dir={out}", *overrides])
    assert isinstance(run, GraftFile)
    graft(run)
    return run


def test_a_folder_with_other_things_is_refused_before_stage_one(run_path: Path, tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not an earlier run \(it holds poem.txt\)"):
        graft_into(tmp_path, run_path)
    assert [path.name for path in tmp_path.iterdir()] == ["poem.txt"]


def test_stage_one_brings_the_new_mixers_nearer_and_leaves_the_rest(finished: Path, base_folder: Path) -> None:
    records = read_metrics(finished / "regression" / "metrics.jsonl")
    assert len(records) == 8
    for layer in ("layer_01", "layer_03"):
        assert records[-1][layer] < records[0][layer]
    assert records[0]["loss"] == pytest.approx((records[0]["layer_01"] + records[0]["layer_03"]) / 2, rel=1e-5)
    base, grafted = (load_file(folder / "model.safetensors") for folder in (base_folder, finished / "grafted"))
    for name, tensor in base.items():
        if name != "lm_head.weight":
            new = "self_attn" in name and (".layers.1." in name or ".layers.3." in name)
            assert torch.equal(grafted[name.replace("self_attn", "mixer")], tensor) != new, name


def test_all_stages_are_evaluated_on_the_same_text(
    finished: Path, out: Path, run_path: Path, base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = graft_into(out, run_path)  # done already: it is said what came of it
    before = json.loads((finished / "before.json").read_text())
    assert list(before) == ["original", "grafted", "grafted and regressed"]
    assert before["original"]["loss"] == pytest.approx(held_out_loss(run, base_folder), rel=1e-4)
    assert before["grafted and regressed"]["loss"] == pytest.approx(held_out_loss(run, finished / "grafted"), rel=1e-4)
    last = read_metrics(finished / "metrics.jsonl")[-1]["validation_loss"]
    shown = [f"{name} {found['loss']:.4f}" for name, found in before.items()] + [f"after the run {last:.4f}"]
    assert capsys.readouterr().out.splitlines()[-1] == "held-out loss at 64 tokens: " + "; ".join(shown)
    report = (finished / "report.html").read_text()
    assert report.count("grafted and regressed") >= 2
    assert "the same of its base" in report


@pytest.mark.parametrize("lora", [None, "{rank: 2, targets: all-linear}"], ids=["everything", "lora"])
def test_stage_two_trains_and_is_exported(out: Path, run_path: Path, tmp_path: Path, lora: str | None) -> None:
    if lora is not None:
        for name in ("checkpoints", "complete.json"):  # the same first stage
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run = graft_into(out, run_path, *([] if lora is None else [f"lora={lora}"]))
    records = read_metrics(out / "metrics.jsonl")
    assert len(records) == 4
    assert records[-1]["loss"] < records[0]["loss"]
    moved = tmp_path / "moved"  # the grafted model is found beside the run, wherever that is
    out.rename(moved)
    export_run(moved, tmp_path / "exported")
    assert held_out_loss(run, tmp_path / "exported") == pytest.approx(records[-1]["validation_loss"], rel=1e-4)
    config = AutoConfig.from_pretrained(tmp_path / "exported")
    assert (config.layers, config.max_position_embeddings) == ("(global local)*2", 128)
    if lora is not None:
        export_run(moved, tmp_path / "adapter", adapter_only=True)
        assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_a_killed_run_goes_on_to_the_bit(
    finished: Path, run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, steps, forward = tmp_path / "out", 0, RegressionModel.forward

    def killed(self: RegressionModel, *rest: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > 5:  # two steps behind a checkpoint
            raise KeyboardInterrupt
        return forward(self, *rest)

    monkeypatch.setattr(RegressionModel, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        graft_into(out, run_path)
    assert not (out / "grafted").exists()
    monkeypatch.undo()
    graft_into(out, run_path)
    assert exact(out / "regression") == exact(finished / "regression")
    assert exact(out) == exact(finished)
    ours, theirs = (load_file(folder / "grafted" / "model.safetensors") for folder in (out, finished))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (out / "before.json").read_text() == (finished / "before.json").read_text()


def test_a_step_that_is_gone_back_from_leaves_nothing_in_the_next_ones_distances(
    run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps made again are those of a run that was killed between, whose model began without sums."""
    judge, write = Spikes.accept, RunLog.write
    monkeypatch.setattr(RegressionTraining, "finish", lambda self: None)

    def stage_one(folder: str) -> None:
        own = [
            f"train.output_dir={tmp_path / folder}",
            "guard={action: rewind, sigma: 100, warmup_steps: 2, margin: 1}",
        ]
        run = load_run_file(run_path, own)
        assert isinstance(run, GraftFile)
        train(RegressionRun.of(run), RegressionTraining)

    def spiking(spikes: Spikes, step: int, rows: tuple[int, int]) -> Callable[[float, float], bool]:
        accept = judge(spikes, step, rows)
        return lambda loss, norm: accept(1000 * loss if step == 6 and not spikes.guard.decisions else loss, norm)

    def killed(log: RunLog, record: dict[str, Any]) -> None:
        write(log, record)
        if record.get("guard") == "rewind":
            raise KeyboardInterrupt

    monkeypatch.setattr(Spikes, "accept", spiking)
    stage_one("whole")
    monkeypatch.setattr(RunLog, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        stage_one("killed")
    monkeypatch.setattr(RunLog, "write", write)
    stage_one("killed")
    whole, resumed = (exact(tmp_path / folder / "regression") for folder in ("whole", "killed"))
    assert [record["step"] for record in whole] == [1, 2, 3, 3, 4, 5, 6, 7, 8]
    assert resumed == whole


def test_what_is_done_is_not_done_again(
    out: Path, run_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RegressionTraining, "finish_steps", lambda self, hook=None: pytest.fail("stage one ran again"))
    graft_into(out, run_path)
    said = capsys.readouterr().out
    assert "regression is complete: 8 of 8 steps" in said
    assert "out is complete: 4 of 4 steps" in said
    shutil.rmtree(out / "regression")  # large, and of no more use
    graft_into(out, run_path, "train.steps=5")
    assert len(read_metrics(out / "metrics.jsonl")) == 5


def test_a_lost_result_is_put_together_again(out: Path, finished: Path, run_path: Path) -> None:
    shutil.rmtree(out / "grafted")
    graft_into(out, run_path)
    ours, theirs = (load_file(folder / "grafted" / "model.safetensors") for folder in (out, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_with_another_graft_is_another_run(out: Path, run_path: Path) -> None:
    with pytest.raises(UserError, match=r"graft\.regress\.loss was l1 and is now l2"):
        graft_into(out, run_path, "graft.regress.loss=l2")
    with pytest.raises(UserError, match=r"graft\.mixers\.local\.window was 4 and is now 5"):
        graft_into(out, run_path, "graft.mixers.local.window=5")


def test_stage_one_has_rows_and_shares_of_its_own(run_path: Path) -> None:
    run = load_run_file(run_path, ["graft.regress.sequence_length=32"])
    assert isinstance(run, GraftFile)
    first = RegressionRun.of(run)
    assert (first.data.sequence_length, first.train.steps, first.optimizer.lr) == (32, 8, 3e-3)
    assert RegressionRun.model_validate(first.model_dump(mode="json")) == first
    with pytest.raises(UserError, match=r"graft\.regress\.global_batch_tokens: 256 tokens are 8 rows of 32"):
        require_whole_rows(first, 3, RegressionTraining.section)


@pytest.mark.parametrize(("precision", "stage"), [("bf16", 1), ("fp32", 3)])
def test_other_precisions_and_stages_regress_as_well(
    finished: Path, run_path: Path, tmp_path: Path, precision: str, stage: int
) -> None:
    changes = [f"train.output_dir={tmp_path}", f"train.precision={precision}", f"deepspeed.zero_stage={stage}"]
    run = load_run_file(run_path, changes)
    assert isinstance(run, GraftFile)
    train(RegressionRun.of(run), RegressionTraining)
    found, expected = (read_metrics(folder / "regression" / "metrics.jsonl") for folder in (tmp_path, finished))
    for key in ("loss", "layer_01", "layer_03"):
        tolerance = 2e-2 if precision == "bf16" else 1e-4
        assert [r[key] for r in found] == pytest.approx([r[key] for r in expected], rel=tolerance)
    before = json.loads((tmp_path / "before.json").read_text())
    loss = held_out_loss(run, tmp_path / "grafted")
    assert before["grafted and regressed"]["loss"] == pytest.approx(loss, rel=2e-2)


def test_the_verbs(run_path: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = [str(run_path), f"train.output_dir={out}"]
    assert main(["plan", *run, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    per_token = 2 * 2 * 8 * 4  # keys and values of two heads of eight channels in fp32
    assert plan["base_cache_bytes"] == 4 * 64 * per_token
    assert plan["cache_bytes"] == 2 * (64 + 4) * per_token
    assert main(["plan", *run]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "the base: 32 KiB, 1.88 times that" in table
    assert "2 new mixers regressed on 2.05K tokens in 8 steps" in table
    for verb in ("graft", "train"):  # launchers start the second
        assert main([verb, *run]) == 0
        assert "out is complete: 4 of 4 steps" in capsys.readouterr().out
    text = run_path.read_text()
    plain = tmp_path / "plain.yaml"
    plain.write_text(text[: text.index("graft:")] + text[text.index("data:") :])
    assert main(["graft", str(plain)]) == 2
    assert "has no graft section" in capsys.readouterr().err


@pytest.mark.launch
def test_two_ranks_graft_as_one(finished: Path, run_path: Path, tmp_path: Path) -> None:
    launcher = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node=2", ROOT / "train.py"]
    changes = ["train.micro_batch_size=2", f"train.output_dir={tmp_path}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*launcher, run_path, *changes], env=environment, check=True, timeout=300)
    for stage in (".", "regression"):
        two, one = (read_metrics(folder / stage / "metrics.jsonl") for folder in (tmp_path, finished))
        assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-4)


def test_folders_of_a_graft_are_told_apart_from_others(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", str(finished)]) == 2
    assert "the run grafted a model, whose context stays: its report has" in capsys.readouterr().err
    assert main(["export", str(finished / "regression"), str(tmp_path / "exported")]) == 2
    said = capsys.readouterr().err
    assert f"the first stage of a graft, which has no whole model: name the run's folder, {finished}" in said
    assert "pydantic" not in said
