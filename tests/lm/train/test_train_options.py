from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lm.plan_table import plan_run, print_plan
from lm.run_file import load_run_file
from lm.train.deepspeed_keys import OWNED, PASSED_THROUGH, REFUSED, ZERO_KEYS, ZERO_REFUSED
from lm.train.deepspeed_options import DeepSpeedOptions
from lm.train.engine import deepspeed_config
from lm.train.optimizer_options import (
    ConstantSchedule,
    OptimizerOptions,
    WsdSchedule,
    check_schedule,
    decay_steps,
    schedule_steps,
)
from lm.train.options import TrainOptions, check_run


def train_options(**values: object) -> TrainOptions:
    return TrainOptions.model_validate({"output_dir": "out", "steps": 100, "global_batch_tokens": 512} | values)


def test_known_deepspeed_settings_are_passed_through() -> None:
    options = DeepSpeedOptions.model_validate({"zero_stage": 2, "zero_optimization": {"overlap_comm": False}})
    assert options.passed_through == {"zero_optimization": {"overlap_comm": False}}


@pytest.mark.parametrize("key", sorted(OWNED))
def test_a_setting_of_the_trainer_names_the_key_that_decides_it(key: str) -> None:
    with pytest.raises(ValidationError) as error:
        DeepSpeedOptions.model_validate({key: 1})
    assert f"use {OWNED[key]} instead" in str(error.value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("zero_optimisation", "zero_optimization"), ("grad_clipping", "train.gradient_clipping"), ("stage", "DeepSpeed")],
)
def test_an_unknown_setting_is_refused_with_the_nearest_name(key: str, nearest: str) -> None:
    with pytest.raises(ValidationError) as error:
        DeepSpeedOptions.model_validate({key: 1})
    assert nearest in str(error.value)


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_param"])
def test_state_in_files_needs_a_folder(key: str) -> None:
    with pytest.raises(ValidationError, match=rf"zero_optimization.{key}.device nvme needs nvme_path"):
        DeepSpeedOptions.model_validate({"zero_stage": 3, "zero_optimization": {key: {"device": "nvme"}}})


def test_state_in_files_needs_stage_3() -> None:
    """Below it DeepSpeed keeps in memory, without a word, what it was told to keep in files."""
    files = {"offload_optimizer": {"device": "nvme", "nvme_path": "/disk"}}
    with pytest.raises(ValidationError, match=r"offload_optimizer.device nvme needs deepspeed.zero_stage 3"):
        DeepSpeedOptions.model_validate({"zero_stage": 2, "zero_optimization": files})
    assert DeepSpeedOptions.model_validate({"zero_stage": 3, "zero_optimization": files}).on_nvme == [*files]


def test_an_unknown_setting_of_files_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"aio has no setting 'thread_count'"):
        DeepSpeedOptions.model_validate({"aio": {"thread_count": 2}})


def test_every_setting_has_one_answer() -> None:
    assert not PASSED_THROUGH & OWNED.keys()
    assert not REFUSED.keys() & (PASSED_THROUGH | OWNED.keys())


@pytest.mark.parametrize("key", sorted(ZERO_REFUSED))
def test_a_zero_setting_that_cannot_work_is_refused_with_the_reason(key: str) -> None:
    with pytest.raises(ValidationError) as error:
        DeepSpeedOptions.model_validate({"zero_stage": 2, "zero_optimization": {key: {}}})
    assert f"remove zero_optimization.{key}: {ZERO_REFUSED[key]}" in str(error.value)


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_a_setting_without_effect_is_refused_with_the_reason(key: str) -> None:
    with pytest.raises(ValidationError) as error:
        DeepSpeedOptions.model_validate({key: {}})
    assert f"remove '{key}': {REFUSED[key]}" in str(error.value)


def test_the_zero_settings_are_those_of_the_installed_deepspeed() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = set()
    for name, field in DeepSpeedZeroConfig.model_fields.items():
        extra = field.json_schema_extra
        deprecated = isinstance(extra, dict) and extra.get("deprecated")
        known |= set() if deprecated else {name, field.alias or name}
    assert known - {"legacy_stage1"} == ZERO_KEYS | ZERO_REFUSED.keys()  # which DeepSpeed itself refuses


def test_a_misspelt_zero_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValidationError, match=r"no setting 'overlap_com'\. Did you mean 'overlap_comm'"):
        DeepSpeedOptions.model_validate({"zero_optimization": {"overlap_com": True}})


@pytest.mark.parametrize(
    "values",
    [
        {"zero_stage": 4},
        {"zero_stage": 2, "zero_optimization": {"offload_param": {"device": "cpu"}}},
        {"zero_stage": 0, "zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
        {"zero_optimization": {"stage": 2}},
        {"zero_optimization": 2},
        {"aio": 2},
        {"zero_stage": 2, "zero_optimization": {"offload_optimizer": "cpu"}},
    ],
)
def test_what_the_stage_breaks_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DeepSpeedOptions.model_validate(values)


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"global_batch_tokens": -1},
        {"micro_batch_size": 0},
        {"gradient_clipping": 0},
        {"checkpoint_every": 0},
        {"keep_checkpoints": 0},
        {"precision": "fp8"},
    ],
)
def test_impossible_training_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        train_options(**values)


def test_steps_below_one_are_fractions_of_the_run() -> None:
    assert schedule_steps(0.25, 40) == 10
    assert schedule_steps(1, 40) == 1
    with pytest.raises(ValidationError, match="whole number"):
        ConstantSchedule(warmup_steps=2.5)


def test_a_schedule_longer_than_the_run_is_refused() -> None:
    schedule = WsdSchedule(kind="wsd", warmup_steps=60, decay_steps=50)
    with pytest.raises(ValueError, match="take 110 steps"):
        check_run(train_options(), OptimizerOptions(lr=1e-3, schedule=schedule), 64, 1)


def test_a_batch_that_rows_do_not_fill_is_refused_with_one_that_they_do() -> None:
    with pytest.raises(ValueError, match="use 500"):
        check_run(train_options(), OptimizerOptions(lr=1e-3), 100, 1)


@pytest.mark.parametrize(
    ("precision", "stage", "runs_as"), [("fp32", 0, 0), ("bf16", 0, 1), ("fp16", 0, 1), ("bf16", 2, 2)]
)
def test_a_plan_counts_the_stage_that_the_engine_runs(
    run_path: Path, capsys: pytest.CaptureFixture[str], precision: str, stage: int, runs_as: int
) -> None:
    run = load_run_file(run_path, [f"train.precision={precision}", f"deepspeed.zero_stage={stage}"])
    assert deepspeed_config(run.train, run.deepspeed, 1, 10, False)["zero_optimization"]["stage"] == runs_as
    print_plan(run, *plan_run(run, 2), 2)
    printed = capsys.readouterr().out
    assert f"ZeRO {runs_as}, {precision}" in printed
    assert "recomputed" not in printed


def test_a_profile_of_steps_that_do_not_come_is_refused() -> None:
    values = {"output_dir": "unused", "steps": 11, "global_batch_tokens": 32}
    with pytest.raises(ValidationError, match="profile names step 12, but steps is 11"):
        TrainOptions.model_validate(values | {"profile": [10, 12, 11]})


@given(warmup=st.floats(0, 0.999), decay=st.floats(0.001, 0.999), steps=st.integers(1, 300))
def test_fractions_that_fill_a_run_fit_into_one_of_any_length(warmup: float, decay: float, steps: int) -> None:
    decay = min(decay, 1 - warmup)
    schedule = WsdSchedule(kind="wsd", warmup_steps=warmup, decay_steps=decay)
    check_schedule("optimizer.schedule", schedule, "train.steps", steps)
    assert abs(decay_steps(schedule, steps) - decay * steps) <= 1


def test_flash_attention_needs_bf16() -> None:
    assert train_options(attention_backend="flash", precision="bf16").attention_backend == "flash"
    with pytest.raises(ValidationError, match="flash has no fp32: set precision to bf16 or fp16, or take triton"):
        train_options(attention_backend="flash")
