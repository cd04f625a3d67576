"""Linear cross-entropy against its definition and against PyTorch's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.linear_cross_entropy.reference import reference_cross_entropy


def tensors(n: int, seed: int = 0, dtype: torch.dtype = torch.float64, vocabulary: int = 11) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 6, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, 6, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    return [hidden, weight, torch.randint(0, vocabulary, (n,), generator=random)]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 50), st.sampled_from([0.0, 0.1]), st.floats(0, 1), st.integers(0, 99))
def test_equals_the_definition(n: int, chunk_size: int, z_loss: float, ignored: float, seed: int) -> None:
    hidden, weight, targets = tensors(n, seed)
    targets[torch.rand(n, generator=torch.Generator().manual_seed(seed)) < ignored] = -7
    results = []
    for ours in (True, False):
        if ours:
            loss, nll, correct = linear_cross_entropy(
                hidden, weight, targets, ignore_index=-7, z_loss=z_loss, chunk_size=chunk_size
            )
        else:
            loss, nll, correct = reference_cross_entropy(hidden, weight, targets, -7, z_loss)
        assert not nll.requires_grad
        results.append([loss, nll, correct, *torch.autograd.grad(2.5 * loss, (hidden, weight))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_sums_like_pytorch() -> None:
    hidden, weight, targets = tensors(20)
    targets[3] = -100
    loss, nll, _ = linear_cross_entropy(hidden, weight, targets, chunk_size=8)
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.t(), targets, reduction="sum"))
    torch.testing.assert_close(nll, F.cross_entropy(hidden @ weight.t(), targets, reduction="none").detach())
    assert nll[3] == 0


def test_gradcheck() -> None:
    hidden, weight, targets = tensors(7)
    targets[2] = -100
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, z_loss=0.2, chunk_size=3).loss, (hidden, weight)
    )


def test_gradients_accumulate_and_scale() -> None:
    hidden, weight, targets = tensors(9)
    (truth,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets).loss, weight)
    for part in (slice(0, 4), slice(4, 9)):
        (linear_cross_entropy(hidden[part], weight, targets[part]).loss * 0.5).backward()
    torch.testing.assert_close(weight.grad, truth * 0.5)


@pytest.mark.parametrize("wanted", ["hidden", "weight"])
def test_only_wanted_gradients(wanted: str) -> None:
    hidden, weight, targets = tensors(9)
    truth = dict(
        zip(
            ("hidden", "weight"),
            torch.autograd.grad(reference_cross_entropy(hidden, weight, targets, -100, 0.0)[0], (hidden, weight)),
            strict=True,
        )
    )
    named = {"hidden": hidden, "weight": weight}
    for name, x in named.items():
        x.requires_grad_(name == wanted)
    linear_cross_entropy(hidden, weight, targets).loss.backward()
    torch.testing.assert_close(named[wanted].grad, truth[wanted])
    assert all(x.grad is None for name, x in named.items() if name != wanted)


def test_all_targets_ignored() -> None:
    hidden, weight, _ = tensors(5)
    loss, nll, _ = linear_cross_entropy(hidden, weight, torch.full((5,), -100), z_loss=1.0)
    loss.backward()
    assert loss == 0
    assert (nll == 0).all()
    assert (hidden.grad == 0).all()
    assert (weight.grad == 0).all()


def test_large_logits_stay_finite() -> None:
    hidden, weight, targets = tensors(8, dtype=torch.float32)
    loss, *_ = linear_cross_entropy(hidden * 1e4, weight, targets)
    loss.backward()
    assert loss.isfinite()
    assert weight.grad.isfinite().all()


def test_bfloat16_has_float32_statistics() -> None:
    """Logits are rounded to bfloat16 by the matrix product (relative 2**-8); everything after it is float32."""
    hidden, weight, targets = tensors(64, dtype=torch.bfloat16, vocabulary=50)
    loss, nll, _ = linear_cross_entropy(hidden, weight, targets, chunk_size=16)
    assert loss.dtype == nll.dtype == torch.float32
    exact = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    truth, *_ = reference_cross_entropy(*exact, targets, -100, 0.0)
    torch.testing.assert_close(loss, truth, rtol=2e-3, atol=0.0)
    loss.backward()
    truth.backward()
    for ours, x in zip((hidden, weight), exact, strict=True):
        assert ours.grad.dtype == torch.bfloat16
        assert (ours.grad.float() - x.grad).abs().max() < 0.02 * x.grad.abs().max()


@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
def test_a_mean_in_float16_has_gradients_whose_sum_over_tokens_would_overflow(loss_scale: float) -> None:
    hidden, weight, targets = tensors(8192, dtype=torch.float16)
    with torch.no_grad():
        hidden[:, 0], weight[:, 0] = 100.0, 0.0
    targets[::4] = 5  # the gradient of this row's first entry sums up to about -130,000
    exact = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    (linear_cross_entropy(hidden, weight, targets).loss * (loss_scale / len(targets))).backward()
    truth, *_ = reference_cross_entropy(*exact, targets, -100, 0.0)
    (truth / len(targets)).backward()
    assert exact[1].grad.abs().max() * len(targets) > 2 * torch.finfo(torch.float16).max
    for ours, x in zip((hidden, weight), exact, strict=True):
        assert ours.grad.dtype == torch.float16
        assert (ours.grad.float() / loss_scale - x.grad).abs().max() < 0.01 * x.grad.abs().max()


def test_a_loss_scale_beyond_float16_multiplies_gradients_that_are_not() -> None:
    hidden = torch.tensor([[8.0, 0.0]], dtype=torch.float16, requires_grad=True)
    weight = torch.eye(2, dtype=torch.float16, requires_grad=True)
    (linear_cross_entropy(hidden, weight, torch.tensor([0])).loss * 2.0**17).backward()
    share = 1 / (1 + math.exp(8.0))
    expected = torch.tensor([[-share, share]]) * 2.0**17
    torch.testing.assert_close(hidden.grad.float(), expected, rtol=2e-3, atol=0.0)
    torch.testing.assert_close(weight.grad.float(), expected.t() * torch.tensor([8.0, 0.0]), rtol=2e-3, atol=0.0)


class LargestResult(TorchDispatchMode):
    """Watches every operation: the number of them and the most elements one of them returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.products = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        self.products += "mm" in str(func)
        return result


def test_never_holds_the_full_logits() -> None:
    hidden, weight, targets = tensors(400, vocabulary=90)
    with LargestResult() as watched:
        linear_cross_entropy(hidden, weight, targets, chunk_size=20).loss.backward()
    assert watched.elements <= max(20 * 90, 400 * 6)


def test_ignored_targets_cost_no_logits() -> None:
    hidden, weight, targets = tensors(400, vocabulary=900)
    targets[torch.arange(400) % 50 != 0] = -100
    with LargestResult() as watched:
        linear_cross_entropy(hidden, weight, targets).loss.backward()
    assert watched.elements == 8 * 900


def test_no_gradient_work_under_no_grad() -> None:
    hidden, weight, targets = tensors(40)
    with LargestResult() as watched, torch.no_grad():
        loss, *_ = linear_cross_entropy(hidden, weight, targets, chunk_size=20)
    assert watched.products == 2
    assert not loss.requires_grad


@pytest.mark.parametrize("target", [-1, 11, -101])
def test_targets_out_of_range(target: int) -> None:
    hidden, weight, targets = tensors(5)
    targets[2] = target
    with pytest.raises(ValueError, match=rf"target {target} is neither in \[0, 11\) nor ignore_index -100"):
        linear_cross_entropy(hidden, weight, targets)


def test_rejects_shapes_that_do_not_fit() -> None:
    hidden, weight, targets = tensors(5)
    with pytest.raises(ValueError, match="targets must be"):
        linear_cross_entropy(hidden, weight, targets[:4])
    with pytest.raises(ValueError, match="of one type"):
        linear_cross_entropy(hidden.float(), weight, targets)
    with pytest.raises(ValueError, match="chunk_size"):
        linear_cross_entropy(hidden, weight, targets, chunk_size=0)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_rows_of_padding_predict_nothing_and_learn_nothing(z_loss: float) -> None:
    hidden = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(16, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (9,))
    padded = linear_cross_entropy(hidden, weight, targets, z_loss=z_loss, chunk_size=4, num_classes=11)
    truth = reference_cross_entropy(hidden, weight, targets, -100, z_loss, 11)
    short = linear_cross_entropy(hidden, weight[:11], targets, z_loss=z_loss)
    for mine, reference, cut in zip(padded, truth, short, strict=True):
        torch.testing.assert_close(mine, reference)
        torch.testing.assert_close(mine, cut)
    for mine, reference in zip(
        torch.autograd.grad(padded.loss, (hidden, weight)), torch.autograd.grad(truth[0], (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(mine, reference)
    with pytest.raises(ValueError, match="neither in"):
        linear_cross_entropy(hidden, weight, torch.full((9,), 11), num_classes=11)
    with pytest.raises(ValueError, match="num_classes"):
        linear_cross_entropy(hidden, weight, targets, num_classes=17)
