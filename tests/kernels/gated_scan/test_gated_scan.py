"""The scan against its definition, over every kind of chunk layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.gated_scan import Chunks, backends, chunks, gated_scan
from kernels.gated_scan.reference import reference_scan


def of_lengths(lengths: list[int]) -> Chunks:
    return Chunks(torch.tensor([0, *lengths]).cumsum(0))


def tensors(n: int, seed: int, dtype: torch.dtype = torch.float64, inputs: int = 2) -> tuple[Tensor, list[Tensor]]:
    """A gate with exact zeros and ones in it, and inputs, [n, 2, 3]."""
    random = torch.Generator().manual_seed(seed)
    gate = (torch.rand(n, 2, 3, generator=random, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
    values = [torch.randn(n, 2, 3, generator=random, dtype=torch.float64) for _ in range(inputs)]
    return gate.to(dtype), [x.to(dtype) for x in values]


def evaluate(scan: object, gate: Tensor, inputs: list[Tensor], where: Chunks) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in (gate, *inputs)]
    states = scan(leaves[0], leaves[1:], where)  # type: ignore[operator]
    random = torch.Generator().manual_seed(5)
    grads = [torch.randn(x.shape, generator=random, dtype=torch.float64).to(x.dtype) for x in states]
    torch.autograd.backward(states, grads)
    return [*(x.detach() for x in states), *(x.grad for x in leaves)]


lengths = st.one_of(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.builds(lambda length, count: [length] * count, st.integers(1, 20), st.integers(1, 6)),
)


@pytest.mark.parametrize("max_loop", [64, 4], ids=["one level", "two levels"])
def test_equals_the_definition(monkeypatch: pytest.MonkeyPatch, max_loop: int) -> None:
    monkeypatch.setattr(chunks, "MAX_LOOP", max_loop)

    @settings(deadline=None, max_examples=60)
    @given(lengths, st.integers(0, 99), st.integers(1, 3))
    def check(lengths: list[int], seed: int, inputs: int) -> None:
        where = of_lengths(lengths)
        gate, values = tensors(sum(lengths), seed, inputs=inputs)
        ours, truth = (evaluate(scan, gate, values, where) for scan in (gated_scan, reference_scan))
        for a, b in zip(ours, truth, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)

    check()


@pytest.mark.parametrize("lengths", [[1] * 50, [16] * 8, [16, 16, 3, 16, 9], [500], [128, 128], [300, 7, 90, 1]])
def test_float32_equals_the_definition(lengths: list[int]) -> None:
    gate, values = tensors(sum(lengths), 0, torch.float32)
    ours = evaluate(gated_scan, gate, values, of_lengths(lengths))
    truth = evaluate(reference_scan, gate.double(), [x.double() for x in values], of_lengths(lengths))
    for a, b in zip(ours, truth, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "loop", "cpp", "triton"])
def test_offsets_may_be_a_strided_view(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "cpp":
        request.getfixturevalue("cpp_kernels")
    if (reason := backends()[backend]) != "available" or torch.cuda.is_available():
        pytest.skip(reason)
    where = Chunks(torch.arange(0, 40, 4)[::2])
    gate, value = torch.rand(32, 16), torch.randn(32, 16)
    ours, truth = (
        gated_scan(gate, [value], chunks, backend=name)
        for chunks, name in ((where, backend), (of_lengths([8] * 4), "reference"))
    )
    torch.testing.assert_close(ours, truth)


def test_chunk_starts_forget_the_state_but_keep_the_input_factor() -> None:
    gate, value = torch.full((4, 1), 0.75), torch.ones(4, 1)
    (state,) = gated_scan(gate, [value], of_lengths([3, 1]))
    torch.testing.assert_close(state[:, 0], torch.tensor([0.25, 0.4375, 0.578125, 0.25]))


@pytest.mark.parametrize("lengths", [[4, 4], [3, 4, 1]])
@pytest.mark.parametrize("max_loop", [64, 2])
def test_gradcheck(monkeypatch: pytest.MonkeyPatch, lengths: list[int], max_loop: int) -> None:
    monkeypatch.setattr(chunks, "MAX_LOOP", max_loop)
    where = of_lengths(lengths)
    gate, values = tensors(8, 3)
    leaves = [x.clone().requires_grad_() for x in (gate * 0.8 + 0.1, *values)]
    assert torch.autograd.gradcheck(lambda g, *x: gated_scan(g, x, where), leaves)


@pytest.mark.parametrize("lengths", [[16] * 4, [64], [30, 34], [1] * 64])
def test_expanded_inputs(lengths: list[int]) -> None:
    """Shared keys come as views with stride 0; their gradient sums over the heads that share them."""
    gate, values = tensors(64, 0)
    shared = values[0][:, :1].clone().requires_grad_()
    plain = values[0][:, :1].expand(-1, 2, -1).clone().requires_grad_()
    for x in (shared, plain):
        (state,) = gated_scan(gate, [x.expand(-1, 2, -1)], of_lengths(lengths))
        (state * values[1]).sum().backward()
    torch.testing.assert_close(shared.grad, plain.grad.sum(1, keepdim=True))


def test_bfloat16_inputs_are_scanned_in_float32() -> None:
    """Inputs exact in bfloat16: the states are those of a float32 scan; gradients return rounded once."""
    gate, values = tensors(300, 0, torch.bfloat16)
    ours = evaluate(gated_scan, gate, values, of_lengths([16] * 18 + [12]))
    truth = evaluate(gated_scan, gate.float(), [x.float() for x in values], of_lengths([16] * 18 + [12]))
    assert [x.dtype for x in ours] == [torch.float32] * 2 + [torch.bfloat16] * 3
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("lengths", [[16] * 8, [100, 28], [128]])
def test_no_state_crosses_a_chunk_or_runs_backwards(lengths: list[int]) -> None:
    gate, values = tensors(128, 0)
    x = values[0].requires_grad_()
    (state,) = gated_scan(gate * 0.9 + 0.05, [x], of_lengths(lengths))
    state[70].sum().backward()
    start = max(s for s in of_lengths(lengths).offsets.tolist() if s <= 70)
    touched = x.grad.flatten(1).ne(0).all(1)
    assert touched.equal((torch.arange(128) >= start) & (torch.arange(128) <= 70))


def test_long_chunks_stay_exact_where_quotients_of_gates_would_overflow() -> None:
    n = 5000
    gate = torch.full((n, 1), 0.005).index_fill(0, torch.arange(0, n, 7), 0.0)
    value = torch.randn(n, 1, generator=torch.Generator().manual_seed(0))
    ours = evaluate(gated_scan, gate, [value], of_lengths([n]))
    truth = evaluate(reference_scan, gate, [value], of_lengths([n]))
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_long_chunks_need_few_steps() -> None:
    where = of_lengths([16384, 5])
    assert where.layout.num_steps <= 256
    assert where.block_layout is not None
    assert where.block_layout.num_steps <= 256
    assert where.layout is where.layout


@pytest.mark.parametrize("offsets", [[0], [1, 2], [0, 2, 2], [0, 3, 2]])
def test_chunks_reject(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets must"):
        Chunks(torch.tensor(offsets))


def test_rejects_shapes_that_do_not_fit() -> None:
    gate = torch.rand(4, 2)
    with pytest.raises(ValueError, match="4 tokens"):
        gated_scan(gate[:3], [gate[:3]], of_lengths([4]))
    with pytest.raises(ValueError, match="inputs must be like the gate"):
        gated_scan(gate, [gate[:, :1]], of_lengths([4]))
    with pytest.raises(ValueError, match="at least one input"):
        gated_scan(gate, [], of_lengths([4]))
