"""Muon on one rank, at every stage; `test_two_ranks.py` does the same with two."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lm.model.decoder import LanguageModel
from lm.run_file import RunFile
from lm.train import checkpoint
from lm.train.checkpoint import Counters
from lm.train.muon import GROUP, orthogonalised
from lm.train.optimizer import parameter_groups
from lm.train.optimizer_options import OptimizerOptions

from .tiny import LR, TinyModel, make_engine, micro_batches, plain_steps, steps

MUON = {"kind": "muon"}


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_singular_vectors_stay_and_singular_values_become_one(rows: int, columns: int, seed: int) -> None:
    left, values, right = torch.linalg.svd(
        torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)), full_matrices=False
    )
    even = left @ torch.diag(values.clamp(min=values.max() / 10)) @ right  # tiny ones take more steps than five
    found = left.mT @ orthogonalised(even) @ right.mT
    assert torch.allclose(found, torch.diag(found.diagonal()), atol=1e-3)
    assert ((found.diagonal() > 0.6) & (found.diagonal() < 1.3)).all()


class Plain(torch.optim.Optimizer):
    """Muon and AdamW as their papers write them, on whole matrices."""

    def __init__(self, model: nn.Module) -> None:
        groups = parameter_groups(model, 0.1, muon=True)
        super().__init__(groups, {"lr": LR})
        others = [group for group in self.param_groups if group["name"] != GROUP]
        options = OptimizerOptions(lr=LR)
        self.adamw = torch.optim.AdamW(others, lr=LR, betas=options.betas, eps=options.eps)
        (self.muon,) = (group for group in self.param_groups if group["name"] == GROUP)
        self.momenta = [torch.zeros_like(weight) for weight in self.muon["params"]]

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.adamw.step()
        for weight, momentum in zip(self.muon["params"], self.momenta, strict=True):
            momentum.mul_(0.95).add_(weight.grad, alpha=0.05)
            direction = orthogonalised(0.05 * weight.grad + 0.95 * momentum)
            weight -= LR * (0.2 * math.sqrt(max(weight.shape)) * direction + 0.1 * weight)


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("offloaded", [False, True])
def test_training_equals_a_bare_loop_on_whole_matrices(stage: int, offloaded: bool) -> None:
    if offloaded and not stage:
        pytest.skip("without ZeRO nothing is offloaded")
    zero = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    zero |= {"offload_optimizer": {"device": "cpu"}} if offloaded else {}  # type: ignore[dict-item]
    found = steps(make_engine(stage, optimizer=MUON, zero_optimization=zero), 0, 5)
    expected = plain_steps(5, Plain)
    assert [result.loss for result in found] == pytest.approx([loss for loss, _ in expected], abs=1e-5)
    assert [result.grad_norm for result in found] == pytest.approx([norm for _, norm in expected], rel=1e-4)


def test_pytorchs_own_muon_does_the_same() -> None:
    """Up to its arithmetic in bf16."""
    generator = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(12, 30, generator=generator) for _ in range(2))
    theirs, ours = nn.Parameter(weight.clone()), weight.clone()
    theirs.grad = gradient
    torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
    ours -= 0.1 * (0.1 * ours + 0.2 * math.sqrt(30) * orthogonalised(gradient))
    assert (theirs - ours).norm() < 0.02 * (theirs - weight).norm()


def weights_after_a_step(stage: int, clip: float | None) -> dict[str, Tensor]:
    engine = make_engine(stage, optimizer={**MUON, "weight_decay": 0.0}, train={"gradient_clipping": clip})
    steps(engine, 0, 1)
    return {fragment.name: fragment.parts["weight"].clone() for fragment in engine.fragments()}


@pytest.mark.parametrize("stage", range(4))
def test_the_gradient_is_clipped_and_not_the_orthogonalised_update(stage: int) -> None:
    """DeepSpeed's trap: a clip that scales the gradient a hundred times down must not show in Muon's step."""
    free, clipped = weights_after_a_step(stage, None), weights_after_a_step(stage, 1e-2)
    before = {name: parameter.detach().flatten() for name, parameter in fresh().named_parameters()}
    for name in ("up.weight", "down.weight"):
        step = (free[name] - before[name]).norm()
        assert step > 0.01
        assert (clipped[name] - free[name]).norm() < 1e-3 * step


def fresh() -> TinyModel:
    torch.manual_seed(0)
    return TinyModel()


def test_embeddings_and_heads_of_any_name_are_adamws() -> None:
    """DeepSpeed's other trap: it asks how a parameter is called."""
    (group,) = (group for group in parameter_groups(fresh(), 0.1, muon=True) if group["name"] == GROUP)
    assert [tuple(parameter.shape) for parameter in group["params"]] == [(36, 12), (24, 36)]  # up and down


@pytest.mark.parametrize("tied", ["true", "false"])
def test_of_a_model_the_linear_layers_are_muons(make_run: object, tied: str) -> None:
    run: RunFile = make_run(f"model.tie_word_embeddings={tied}", "model.mixers.rat.short_conv=3")  # type: ignore[operator]
    model = LanguageModel(run.model)
    muons = {
        id(p) for group in parameter_groups(model, 0.1, muon=True) if group["name"] == GROUP for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert (id(parameter) in muons) == name.endswith("_proj.weight"), name


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 1), (2, 2), (3, 3), (2, 3), (3, 0), (0, 1)])
def test_a_resumed_run_goes_on_at_any_stage(before: int, after: int, tmp_path: Path) -> None:
    engine = make_engine(before, optimizer=MUON)
    steps(engine, 0, 3)
    counters = Counters(step=3, adam_step=engine.adam_step)
    folder = checkpoint.save(tmp_path, counters, engine.buffers(), engine.world)
    expected = steps(engine, 3, 6)
    resumed = make_engine(after, optimizer=MUON)
    checkpoint.load(folder, resumed.fragments())
    resumed.restored(3)
    found = steps(resumed, 3, 6)
    if before == after:
        assert found == expected
    assert [result.loss for result in found] == pytest.approx([result.loss for result in expected], abs=1e-5)


@pytest.mark.parametrize("stage", range(4))
def test_a_step_that_is_not_finite_changes_nothing(stage: int) -> None:
    clean, engine = make_engine(stage, optimizer=MUON), make_engine(stage, optimizer=MUON)
    expected = steps(clean, 0, 3)
    assert steps(engine, 0, 1) == expected[:1]
    assert not engine.step(micro_batches(9, poisoned=True), LR).applied
    assert steps(engine, 1, 3) == expected[1:]
