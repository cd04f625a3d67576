"""fp16 on this machine's CPU, which DeepSpeed is told has it: PyTorch computes in it, if slowly."""

import json
import math
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.train import checkpoint, precision
from lm.train.checkpoint import Counters
from lm.train.precision import require_precision

from .test_launchers import launch
from .tiny import LR, make_engine, micro_batches, plain_steps, steps


@pytest.fixture(autouse=True)
def with_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)


@pytest.mark.parametrize("stage", range(4))
def test_fp16_trains_as_fp32_does(stage: int) -> None:
    found = steps(make_engine(stage, "fp16"), 0, 6)
    for result, (loss, norm) in zip(found, plain_steps(6), strict=True):
        assert result.applied
        assert result.loss == pytest.approx(loss, abs=0.02)
        assert result.grad_norm == pytest.approx(norm, rel=0.02)


@pytest.mark.parametrize("stage", range(4))
def test_an_overflow_is_skipped_and_lowers_the_scale_and_a_resumed_run_has_it(stage: int, tmp_path: Path) -> None:
    engine = make_engine(stage, "fp16")
    first = engine.loss_scaler["cur_scale"]
    steps(engine, 0, 2)
    for _ in range(3):  # the first one is forgiven
        assert not engine.step(micro_batches(9, poisoned=True), LR).applied
    assert engine.loss_scaler["cur_scale"] == first / 4
    counters = Counters(step=5, adam_step=engine.adam_step, loss_scaler=engine.loss_scaler)
    folder = checkpoint.save(tmp_path, counters, engine.buffers(), engine.world)
    expected = steps(engine, 2, 5)
    resumed = make_engine(stage, "fp16")
    checkpoint.load(folder, resumed.fragments())
    found = checkpoint.read_counters(folder)
    resumed.restored(found.adam_step, found.loss_scaler)
    assert steps(resumed, 2, 5) == expected
    assert resumed.loss_scaler == engine.loss_scaler


@pytest.mark.parametrize("stage", range(4))
def test_a_step_that_is_not_wanted_is_no_overflow(stage: int) -> None:
    clean, engine = make_engine(stage, "fp16"), make_engine(stage, "fp16")
    expected = steps(clean, 0, 3)
    assert steps(engine, 0, 1) == expected[:1]
    for _ in range(3):
        result = engine.step(micro_batches(9), LR, lambda loss, grad_norm: False)
        assert result.finite
        assert not result.applied
    assert steps(engine, 1, 3) == expected[1:]
    assert engine.loss_scaler == clean.loss_scaler


def test_the_smallest_scale_is_not_the_end_of_the_program() -> None:
    engine = make_engine(1, "fp16")
    for _ in range(20):
        assert not engine.step(micro_batches(9, poisoned=True), LR).applied
    assert engine.loss_scaler["cur_scale"] == 1
    assert steps(engine, 0, 1)[0].applied


@pytest.mark.launch
def test_an_overflow_on_one_rank_is_skipped_on_both(tmp_path: Path) -> None:
    script = Path(__file__).with_name("fp16_script.py")
    launch("torchrun", "--standalone", "--nproc_per_node=2", str(script), str(tmp_path), *"13")
    for stage in (1, 3):
        first, second = (json.loads((tmp_path / f"stage-{stage}-rank-{rank}.json").read_text()) for rank in range(2))
        assert first == second
        before, after = first["all"]["scales"]
        assert after == before / 4  # the first of three is forgiven
        assert first["without"]["scales"] == [before, before]
        for step, loss, applied in first["all"]["results"]:
            assert applied == (step not in (1, 2, 3))
            assert math.isfinite(loss)
        found = {step: loss for step, loss, _ in first["all"]["results"]}
        for step, loss, _ in first["without"]["results"]:
            assert found[step] == pytest.approx(loss, abs=0.02)


def test_a_machine_without_fp16_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_has_fp16", lambda: False)
    require_precision("bf16")
    with pytest.raises(UserError, match=r"train.precision: fp16 needs a GPU"):
        require_precision("fp16")
