"""One rank; `test_launchers.py` does the same with two."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from kernels.linear_cross_entropy import CrossEntropy
from lm.errors import UserError
from lm.model.documents import Documents
from lm.train import checkpoint, distributed
from lm.train.checkpoint import Counters
from lm.train.deepspeed_options import DeepSpeedOptions
from lm.train.engine import Engine, StepResult
from lm.train.optimizer import parameter_groups
from lm.train.optimizer_options import OptimizerOptions
from lm.train.options import TrainOptions
from lm.train.sharing import MicroBatch

VOCAB, WIDTH, LR = 31, 12, 1e-2
STAGES = [(stage, precision) for stage in range(4) for precision in ("fp32", "bf16")]


class TinyModel(nn.Module):
    """Predicts the next token from this one. A token 0 makes the loss infinite and the gradients NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, WIDTH)
        self.up = nn.Linear(WIDTH, 3 * WIDTH)
        self.norm = nn.RMSNorm(3 * WIDTH)
        self.lm_head = nn.Linear(3 * WIDTH, VOCAB, bias=False)

    def forward(self, tokens: Tensor, documents: Documents, targets: Tensor) -> CrossEntropy:
        hidden = self.norm(torch.nn.functional.gelu(self.up(self.embed_tokens(tokens))))
        logits = self.lm_head(hidden).float() / (tokens != 0)[:, None]
        nll = nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
        return CrossEntropy(nll.sum(), nll.detach(), logits.argmax(1) == targets)


def micro_batches(step: int, poisoned: bool = False) -> list[MicroBatch]:
    """Three forwards with different numbers of targets."""
    generator = torch.Generator().manual_seed(step)
    batches = []
    for masked in (0, 5, 11):
        tokens = torch.randint(1, VOCAB, (2, 8), generator=generator)
        targets = (tokens * 7 + 3) % VOCAB
        targets.view(-1)[:masked] = -100
        batches.append(SimpleNamespace(tokens=tokens, targets=targets, lengths=[8, 8]))
    if poisoned:
        batches[1].tokens[1, 7] = 0
    return batches


def train_options(precision: str = "fp32", clip: float | None = 0.5) -> TrainOptions:
    return TrainOptions.model_validate(
        {
            "output_dir": "unused",
            "steps": 10,
            "global_batch_tokens": 48,
            "precision": precision,
            "gradient_clipping": clip,
        }
    )


def make_engine(stage: int, precision: str, micro_batches: int = 3, **settings: object) -> Engine:
    torch.manual_seed(0)
    # Without a threshold of 0, ZeRO-3 never shards parameters as small as these.
    zero = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    options = DeepSpeedOptions.model_validate({"zero_stage": stage, "zero_optimization": zero} | settings)
    world = distributed.start()
    return Engine(TinyModel(), train_options(precision), OptimizerOptions(lr=LR), options, world, micro_batches)


def steps(engine: Engine, first: int, last: int) -> list[StepResult]:
    return [engine.step(micro_batches(step), LR) for step in range(first, last)]


def plain_steps(count: int) -> list[tuple[float, float]]:
    """Loss and gradient norm of a bare PyTorch loop that sees each step's tokens as one batch."""
    torch.manual_seed(0)
    model, options = TinyModel(), OptimizerOptions(lr=LR)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, options.weight_decay), lr=LR, betas=options.betas, eps=options.eps
    )
    results = []
    for step in range(count):
        batches = micro_batches(step)
        tokens, targets = (torch.cat([getattr(b, key).flatten() for b in batches]) for key in ("tokens", "targets"))
        loss = model(tokens, Documents.from_lengths([48]), targets).loss / (targets != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        results.append((loss.item(), norm.item()))
    return results


@pytest.mark.parametrize("stage", range(4))
def test_training_equals_a_bare_loop_over_the_whole_batch(stage: int) -> None:
    found = steps(make_engine(stage, "fp32"), 0, 6)
    for result, (loss, norm) in zip(found, plain_steps(6), strict=True):
        assert result.loss == pytest.approx(loss, abs=1e-5)
        assert result.grad_norm == pytest.approx(norm, rel=1e-4)
        assert result.targets == 32
        assert result.applied


@pytest.mark.parametrize(("stage", "precision"), STAGES)
def test_a_resumed_run_is_bit_identical(stage: int, precision: str, tmp_path: Path) -> None:
    engine = make_engine(stage, precision)
    steps(engine, 0, 3)
    folder = checkpoint.save(tmp_path, Counters(step=3, adam_step=engine.adam_step), engine.fragments(), engine.world)
    expected = steps(engine, 3, 6)
    resumed = make_engine(stage, precision)
    checkpoint.load(folder, resumed.fragments())
    resumed.restored(checkpoint.read_counters(folder).adam_step)
    assert steps(resumed, 3, 6) == expected


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
    folder = checkpoint.save(tmp_path, Counters(step=3), engine.fragments(), engine.world)
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


def test_the_optimizers_state_may_lie_in_the_cpus_memory() -> None:
    found = steps(make_engine(2, "fp32", zero_optimization={"offload_optimizer": {"device": "cpu"}}), 0, 3)
    assert [result.loss for result in found] == pytest.approx([loss for loss, _ in plain_steps(3)], abs=1e-5)


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
