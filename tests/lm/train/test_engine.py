"""One rank; `test_launchers.py` does the same with two."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels.linear_cross_entropy import CrossEntropy
from lm.errors import UserError
from lm.model.documents import Documents
from lm.train import checkpoint
from lm.train.checkpoint import Counters

from .tiny import LR, STAGES, TinyModel, make_engine, micro_batches, plain_steps, steps


@pytest.mark.parametrize("stage", range(4))
def test_training_equals_a_bare_loop_over_the_whole_batch(stage: int) -> None:
    found = steps(make_engine(stage, "fp32"), 0, 6)
    for result, (loss, norm) in zip(found, plain_steps(6), strict=True):
        assert result.loss == pytest.approx(loss, abs=1e-5)
        assert result.grad_norm == pytest.approx(norm, rel=1e-4)
        assert result.targets == 32
        assert result.applied


OFFLOADS = [(stage, offload) for stage in range(4) for offload in (False, True) if stage or not offload]


@pytest.mark.parametrize(("stage", "offload"), OFFLOADS)
def test_every_step_may_have_as_many_micro_batches_as_it_likes(stage: int, offload: bool) -> None:
    """A growing batch and stages of other rows, with gradients that are means over targets all the same."""
    zero = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    zero |= {"offload_optimizer": {"device": "cpu"}} if offload else {}  # type: ignore[dict-item]
    engine = make_engine(stage, zero_optimization=zero)
    counts = [1, 3, 2, 3, 1]
    found = [steps(engine, step, step + 1, count)[0] for step, count in enumerate(counts)]
    expected = plain_steps(5, forwards=lambda step: counts[step])
    assert [result.loss for result in found] == pytest.approx([loss for loss, _ in expected], abs=1e-5)
    assert [result.grad_norm for result in found] == pytest.approx([norm for _, norm in expected], rel=1e-4)


@pytest.mark.parametrize("stage", range(4))
def test_a_gradient_that_the_forward_makes_is_scaled_as_all_others(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's trap: its tiled loss gives the head a gradient in the forward, which no later scale reaches."""
    expected = plain_steps(3)  # with the loss as PyTorch has it

    def in_chunks(model: TinyModel, tokens: Tensor, documents: Documents, targets: Tensor) -> CrossEntropy:
        hidden = model.norm(model.down(nn.functional.gelu(model.up(model.words(tokens)))))
        out: CrossEntropy = model.scores(hidden, targets)
        return out

    monkeypatch.setattr(TinyModel, "forward", in_chunks)
    for result, (loss, norm) in zip(steps(make_engine(stage), 0, 3), expected, strict=True):
        assert result.loss == pytest.approx(loss, abs=1e-5)
        assert result.grad_norm == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(("stage", "precision"), STAGES)
def test_a_resumed_run_is_bit_identical(stage: int, precision: str, tmp_path: Path) -> None:
    engine = make_engine(stage, precision)
    steps(engine, 0, 3)
    folder = checkpoint.save(tmp_path, Counters(step=3, adam_step=engine.adam_step), engine.buffers(), engine.world)
    expected = steps(engine, 3, 6)
    resumed = make_engine(stage, precision)
    checkpoint.load(folder, resumed.fragments())
    resumed.restored(checkpoint.read_counters(folder).adam_step)
    assert steps(resumed, 3, 6) == expected


@pytest.mark.parametrize("stage", [0, 2])
def test_dropout_draws_the_same_after_a_resume(stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TinyModel, "dropout", 0.3)
    engine = make_engine(stage, "fp32")
    steps(engine, 0, 2)
    folder = checkpoint.save(tmp_path, Counters(step=2, adam_step=2), engine.buffers(), engine.world)
    expected = steps(engine, 2, 4)
    resumed = make_engine(stage, "fp32")
    checkpoint.load(folder, resumed.fragments())
    resumed.restored(2)
    assert steps(resumed, 2, 4) != expected  # other draws
    checkpoint.load(folder, resumed.fragments())
    resumed.restored(2)
    checkpoint.load_random_state(folder, 0)
    assert steps(resumed, 2, 4) == expected


@pytest.mark.parametrize("stage", range(4))
def test_many_micro_batches_of_bf16_add_up_exactly(stage: int, capfd: pytest.CaptureFixture[str]) -> None:
    batch = micro_batches(0)[0]
    once, often = (make_engine(stage, "bf16", count).step([batch] * count, LR) for count in (1, 64))
    assert often.grad_norm == pytest.approx(once.grad_norm, rel=1e-5)
    assert "GB" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 1), (2, 0)])
def test_a_run_goes_on_at_another_stage(before: int, after: int, tmp_path: Path) -> None:
    engine = make_engine(before, "fp32")
    steps(engine, 0, 3)
    folder = checkpoint.save(tmp_path, Counters(step=3), engine.buffers(), engine.world)
    resumed = make_engine(after, "fp32")
    checkpoint.load(folder, resumed.fragments())
    resumed.restored(3)
    found = [result.loss for result in steps(resumed, 3, 6)]
    assert found == pytest.approx([loss for loss, _ in plain_steps(6)[3:]], abs=1e-5)


@pytest.mark.parametrize(("stage", "precision"), STAGES)
def test_a_step_that_is_not_finite_changes_nothing(stage: int, precision: str) -> None:
    clean, engine = make_engine(stage, precision), make_engine(stage, precision)
    expected = steps(clean, 0, 3)
    assert steps(engine, 0, 1) == expected[:1]
    skipped = engine.step(micro_batches(9, poisoned=True), LR)
    assert not skipped.applied
    assert not math.isfinite(skipped.grad_norm)
    assert engine.adam_step == 1
    assert steps(engine, 1, 3) == expected[1:]


def test_the_engine_starts_from_the_models_own_weights_in_bf16() -> None:
    """DeepSpeed takes an optimizer step when it starts, which must not decay them."""
    torch.manual_seed(0)
    drawn = dict(TinyModel().named_parameters())
    for fragment in make_engine(0, "bf16").fragments():
        weights = drawn[fragment.name].detach().bfloat16().float()
        assert torch.equal(fragment.parts["weight"], weights.flatten())


def test_settings_that_deepspeed_refuses_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"(?s)ValidationError: .*sub_group_size"):
        make_engine(1, "fp32", zero_optimization={"sub_group_size": -1})


@pytest.mark.parametrize(
    ("at_fault", "error"),
    [
        ("deepspeed.initialize", torch.OutOfMemoryError("CUDA out of memory")),
        ("deepspeed.initialize", torch.distributed.DistBackendError("NCCL error")),
        ("lm.train.engine.build_optimizer", ValueError("ours")),
    ],
)
def test_what_is_no_refusal_stays_what_it_is(at_fault: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(at_fault, fail)
    with pytest.raises(type(error)) as found:
        make_engine(1)
    assert found.value is error


@pytest.mark.parametrize(("stage", "precision"), STAGES)
def test_a_step_that_is_not_accepted_changes_nothing(stage: int, precision: str) -> None:
    clean, engine = make_engine(stage, precision), make_engine(stage, precision)
    expected = steps(clean, 0, 3)
    told: list[tuple[float, float]] = []

    def refuse(loss: float, grad_norm: float) -> bool:
        told.append((loss, grad_norm))
        return False

    assert steps(engine, 0, 1) == expected[:1]
    refused = engine.step(micro_batches(1), LR, refuse)
    assert (refused.loss, refused.grad_norm) == (expected[1].loss, expected[1].grad_norm) == told[0]
    assert refused.finite
    assert not refused.applied
    assert engine.adam_step == 1
    assert steps(engine, 1, 3) == expected[1:]


CPU = {"device": "cpu"}
OFFLOADED = [
    (1, {"offload_optimizer": CPU}),
    (2, {"offload_optimizer": CPU}),
    (3, {"offload_optimizer": CPU}),
    (3, {"offload_param": CPU}),
    (3, {"offload_optimizer": CPU, "offload_param": CPU}),
]


@pytest.mark.parametrize(("stage", "zero"), OFFLOADED)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_lies_in_the_cpus_memory_is_in_the_checkpoint(
    stage: int, zero: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    zero = zero | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    engine = make_engine(stage, precision, zero_optimization=zero)
    begun = steps(engine, 0, 3)
    if precision == "fp32":
        assert [result.loss for result in begun] == pytest.approx([loss for loss, _ in plain_steps(3)], abs=1e-5)
    folder = checkpoint.save(tmp_path, Counters(step=3), engine.buffers(), engine.world)
    expected = steps(engine, 3, 6)
    resumed = make_engine(stage, precision, zero_optimization=zero)
    checkpoint.load(folder, resumed.fragments())
    resumed.restored(3)
    assert steps(resumed, 3, 6) == expected
