"""The C++ scan against its definition: every kind of chunk layout, shared keys, threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.gated_scan import Chunks, default, gated_scan
from kernels.gated_scan.cpp_scan import refuses, run
from kernels.gated_scan.reference import reference_scan

pytestmark = pytest.mark.usefixtures("cpp_kernels")


def of_lengths(lengths: list[int]) -> Chunks:
    return Chunks(torch.tensor([0, *lengths]).cumsum(0))


def evaluate(scan: object, gate: Tensor, keys: Tensor, values: Tensor, where: Chunks) -> list[Tensor]:
    """Keys are shared by the two heads."""
    leaves = [x.clone().requires_grad_() for x in (gate, keys, values)]
    states = scan(leaves[0], (leaves[1][:, None].expand_as(values), leaves[2]), where)  # type: ignore[operator]
    random = torch.Generator().manual_seed(5)
    torch.autograd.backward(states, [torch.randn(x.shape, generator=random).to(x.dtype) for x in states])
    return [*(x.detach() for x in states), *(x.grad for x in leaves)]


lengths = st.one_of(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.builds(lambda length, count: [length] * count, st.integers(1, 20), st.integers(1, 20)),
    st.lists(st.integers(100, 200), min_size=1, max_size=2),
)


@settings(deadline=None, max_examples=25)
@given(lengths, st.sampled_from([16, 48]), st.integers(1, 3))
def test_equals_the_definition(lengths: list[int], width: int, threads: int) -> None:
    torch.set_num_threads(threads)
    n, random = sum(lengths), torch.Generator().manual_seed(0)
    gate = (torch.rand(n, 2, 3, width, generator=random) * 1.4 - 0.2).clamp(0, 1)
    keys, values = torch.randn(n, 3, width, generator=random), torch.randn(n, 2, 3, width, generator=random)
    ours = evaluate(run, gate, keys, values, of_lengths(lengths))
    truth = evaluate(reference_scan, gate.double(), keys.double(), values.double(), of_lengths(lengths))
    for a, b in zip(ours, truth, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("float64_by_default")
def test_what_torch_makes_by_default_is_no_result_of_it() -> None:
    gate, keys, values = (
        torch.rand(40, 2, 3, 16).float(),
        torch.randn(40, 3, 16).float(),
        torch.randn(40, 2, 3, 16).float(),
    )
    ours, truth = (evaluate(scan, gate, keys, values, of_lengths([30, 10])) for scan in (run, reference_scan))
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def test_no_state_crosses_a_chunk_or_runs_backwards() -> None:
    gate, x = torch.rand(128, 16), torch.randn(128, 16, requires_grad=True)
    (state,) = run(gate, [x], of_lengths([100, 28]))
    state[70].sum().backward()
    assert x.grad.ne(0).all(1).equal(torch.arange(128) <= 70)


def test_what_is_built_runs_by_default_and_what_it_refuses_runs_as_before() -> None:
    assert default("cpu") == "cpp"
    for gate, inputs, reason in (
        (torch.rand(5, 24), 1, "channels must come in multiples of 16"),
        (torch.rand(5, 16).double(), 1, "it computes in float32"),
        (torch.rand(5, 16), 5, "it takes up to 4 inputs; there are 5"),
    ):
        values = [torch.randn_like(gate) for _ in range(inputs)]
        assert refuses(gate, values) == reason or reason in str(refuses(gate, values))
        torch.testing.assert_close(
            gated_scan(gate, values, of_lengths([5])), gated_scan(gate, values, of_lengths([5]), backend="loop")
        )
