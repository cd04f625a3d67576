"""The graft section of a run file: it loads back equal, and mistakes in it are named with their place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.graft.stages import RegressionRun
from lm.run_file import GraftFile, load_run_file, to_yaml


def test_it_resolves_to_a_file_that_loads_back_equal(run_path: Path, tmp_path: Path) -> None:
    run = load_run_file(run_path)
    assert isinstance(run, GraftFile)
    assert run.graft.regress.loss == "l1"
    assert run.graft.regress.optimizer.weight_decay == 0
    saved = tmp_path / "resolved.yaml"
    saved.write_text(to_yaml(run))
    again = load_run_file(saved)
    assert to_yaml(again) == to_yaml(run)
    assert isinstance(again, GraftFile)
    assert again.trainee.operation.after == run.trainee.operation.after
    # A default written out would no longer be the base's.
    assert "qk_norm" not in saved.read_text().partition("regress")[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("graft.layers=(global locl)*2", "graft.layers: 'locl' is not a mixer. Did you mean 'local'?"),
        ("graft.layers=global*3", "graft.layers: 'global*3' has 3 layers, the model has 4"),
        ("graft.mixers.local.windw=8", "graft.mixers.local.windw: unknown key. Did you mean 'window'?"),
        ("graft.mixers.local.kind=atention", "allowed: 'attention'"),
        ("graft.regress.loss=l3", "graft.regress.loss: given 'l3'; allowed: 'l1', 'l2' or 'huber'"),
        ("graft.regress.global_batch_tokens=100", "which is not a multiple of data.sequence_length 64: use 128"),
        ("graft.regress.sequence_length=48", "which is not a multiple of graft.regress.sequence_length 48: use 240"),
        (
            "graft.regress.optimizer.schedule={kind: linear, warmup_steps: 9}",
            "take 9 steps, but graft.regress.steps is 8",
        ),
        ("graft.regress.sequence_length=256", "rows of 256 exceed the base's context of 128"),
        ("extend.target_length=256", "extend: a graft keeps the base's context"),
        ("base.quantization=nf4", "base.quantization: nf4 is not for grafting"),
        ("graft.regress.optimizer.base_width=64", "graft.regress.optimizer.base_width: a base has its weights already"),
        ("lora.targets=[w_proj]", "lora.targets: 'w_proj': the base has no such linear layer. Did you mean"),
        ("lora.rnk=4", "lora.rnk: unknown key. Did you mean 'rank'?"),
    ],
)
def test_mistakes_are_named(run_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_run_file(run_path, [override])
    assert message in str(error.value)
    assert str(error.value).startswith(f"command line, {override.split('=')[0]}") or "graft.yaml:" in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.sequence_parallel=32", "graft.regress.sequence_length=16"],
            "graft.regress: train.sequence_parallel is 32, more than graft.regress.sequence_length 16",
        ),
        (
            [
                "graft.regress.optimizer.kind=muon",
                "deepspeed.zero_stage=3",
                "deepspeed.zero_optimization.offload_optimizer={device: nvme, nvme_path: /tmp}",
            ],
            "graft.regress: graft.regress.optimizer.kind muon gathers pieces of the master weights",
        ),
    ],
)
def test_what_stage_one_alone_cannot_do_is_said_before_anything_runs(
    run_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_run_file(run_path, overrides)


def test_kernels_are_asked_in_both_stages_what_the_new_mixers_ask(run_path: Path) -> None:
    run = load_run_file(run_path)
    assert isinstance(run, GraftFile)
    for stage in (run, RegressionRun.of(run)):
        assert stage.trainee.options == run.trainee.operation.after


def test_a_graft_needs_a_base(run_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("\n".join(line for line in run_path.read_text().splitlines() if not line.startswith("base")))
    with pytest.raises(UserError, match=r"run\.yaml:1: graft: name the model to graft onto under base"):
        load_run_file(path)
