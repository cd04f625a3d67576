"""The scan in Triton against the definition: in the interpreter, or on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.gated_scan import Chunks, backends, chunks, gated_scan
from kernels.gated_scan.reference import reference_scan
from kernels.gated_scan.rows import repeating

triton_scan = pytest.importorskip("kernels.gated_scan.triton_scan", reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def of_lengths(lengths: list[int]) -> Chunks:
    return Chunks(torch.tensor([0, *lengths], device=DEVICE).cumsum(0))


def tensors(n: int, inputs: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A gate with exact zeros and ones in it, and inputs, [n, 3, 7]."""
    random = torch.Generator().manual_seed(0)
    gate = (torch.rand(n, 3, 7, generator=random) * 1.4 - 0.2).clamp(0, 1)
    drawn = [gate, *(torch.randn(n, 3, 7, generator=random) for _ in range(inputs))]
    return [x.to(DEVICE, dtype) for x in drawn]


def evaluate(scan: Callable[..., tuple[Tensor, ...]], values: list[Tensor], where: Chunks) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in values]
    states = scan(leaves[0], leaves[1:], where)
    random = torch.Generator().manual_seed(5)
    torch.autograd.backward(states, [torch.randn(x.shape, generator=random).to(x) for x in states])
    return [*(x.detach() for x in states), *(x.grad for x in leaves)]


@pytest.mark.parametrize(
    ("lengths", "inputs", "max_loop"),
    [
        ([16, 16], 2, 64),
        ([5, 1, 20, 2], 1, 64),
        ([1, 3], 3, 64),
        ([1], 1, 64),
        ([22, 3, 1, 9], 2, 4),  # long chunks in blocks, short ones whole
        ([30], 1, 4),
    ],
)
def test_equals_the_definition(monkeypatch: pytest.MonkeyPatch, lengths: list[int], inputs: int, max_loop: int) -> None:
    monkeypatch.setattr(chunks, "MAX_LOOP", max_loop)
    where, values = of_lengths(lengths), tensors(sum(lengths), inputs)
    assert where.whole == (max_loop == 64)
    for ours, truth in zip(
        evaluate(triton_scan.run, values, where), evaluate(reference_scan, values, where), strict=True
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def test_bfloat16_inputs_are_scanned_in_float32() -> None:
    where, values = of_lengths([6, 5]), tensors(11, 2, torch.bfloat16)
    ours = evaluate(triton_scan.run, values, where)
    truth = evaluate(reference_scan, [x.float() for x in values], where)
    assert [x.dtype for x in ours] == [torch.float32] * 2 + [torch.bfloat16] * 3
    # The interpreter cuts bits off where a GPU rounds: the last of bfloat16's 8 may differ.
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=2**-7 if a.dtype == torch.bfloat16 else 1e-5, atol=1e-5)


def test_float64_stays_float64() -> None:
    where, values = of_lengths([6, 5]), tensors(11, 1, torch.float64)
    for a, b in zip(evaluate(triton_scan.run, values, where), evaluate(reference_scan, values, where), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_keys_that_heads_share_are_read_where_they_lie() -> None:
    gate, x, _ = tensors(9, 2)
    shared = x[:, :1].clone().requires_grad_()
    plain = shared.detach().clone().requires_grad_()
    for leaf, scan in ((shared, triton_scan.run), (plain, reference_scan)):
        (state,) = scan(gate, [leaf.expand(-1, 3, -1)], of_lengths([4, 5]))
        (state * gate).sum().backward()
    torch.testing.assert_close(shared.grad, plain.grad)
    expanded = shared.expand(-1, 3, -1)
    assert repeating(expanded) == (expanded, 7, 7)


def test_layouts_that_do_not_repeat_are_copied() -> None:
    gate, x = (y.transpose(1, 2).contiguous().transpose(1, 2) for y in tensors(9, 1))
    where = of_lengths([4, 5])
    torch.testing.assert_close(triton_scan.run(gate, [x], where), reference_scan(gate, [x], where))


def test_it_is_chosen_by_name() -> None:
    assert backends()["triton"] == "available"
    gate, x = tensors(5, 1)
    where = of_lengths([5])
    torch.testing.assert_close(gated_scan(gate, [x], where, backend="triton"), reference_scan(gate, [x], where))
