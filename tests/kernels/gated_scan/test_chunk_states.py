"""Running values, scores of running keys and final states: fused equals composed, and composed is the scan."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.gated_scan import Chunks, scan_calls
from kernels.gated_scan.chunk_states import chunk_states, composed_states
from kernels.gated_scan.cpp_chunk_states import refuses, run
from kernels.gated_scan.reference import reference_scan


def tensors(n: int, heads: int, groups: int, dim: int = 16) -> list[Tensor]:
    """gate, query, key, value."""
    random = torch.Generator().manual_seed(0)
    gate = (torch.rand(n, heads, dim, generator=random) * 1.4 - 0.2).clamp(0, 1)
    query, key = torch.randn(2, n, groups, dim, generator=random)
    return [gate, query, key, torch.randn(n, heads, dim, generator=random)]


def evaluate(states: object, inputs: list[Tensor], chunks: Chunks, finals: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    found = states(*leaves, chunks, finals)  # type: ignore[operator]
    random = torch.Generator().manual_seed(5)
    torch.autograd.backward(found, [torch.randn(x.shape, generator=random).to(x.dtype) for x in found])
    return [*(x.detach() for x in found), *(x.grad for x in leaves)]


@pytest.mark.usefixtures("cpp_kernels")
@settings(deadline=None, max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    groups=st.integers(1, 3),
    repeats=st.integers(1, 3),
    threads=st.integers(1, 3),
    every=st.integers(1, 3),
)
def test_fused_equals_composed(lengths: list[int], groups: int, repeats: int, threads: int, every: int) -> None:
    """Not every chunk is finished: the last of a document is none of the finals."""
    torch.set_num_threads(threads)
    chunks = Chunks(torch.tensor([0, *lengths]).cumsum(0))
    finals = (chunks.offsets[1:] - 1)[::every].contiguous()
    inputs = tensors(sum(lengths), groups * repeats, groups)
    ours = evaluate(run, inputs, chunks, finals)
    truth = evaluate(composed_states, [x.double() for x in inputs], chunks, finals)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("cpp_kernels", "float64_by_default")
def test_what_torch_makes_by_default_is_no_result_of_it() -> None:
    chunks, inputs = Chunks(torch.tensor([0, 4, 8, 10])), [x.float() for x in tensors(10, 4, 2)]
    ours, truth = (evaluate(states, inputs, chunks, torch.tensor([3, 7])) for states in (run, composed_states))
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def test_composed_is_the_scan_with_heads_sharing_keys_in_turn() -> None:
    gate, query, key, value = (x.double() for x in tensors(10, 4, 2))
    chunks = Chunks(torch.tensor([0, 4, 8, 10]))
    found = composed_states(gate, query, key, value, chunks, torch.tensor([3, 7]))
    for head in range(4):
        keys, values = reference_scan(gate[:, head], (key[:, head % 2], value[:, head]), chunks)
        torch.testing.assert_close(found.values[:, head], values)
        torch.testing.assert_close(found.score[:, head], (keys * query[:, head % 2]).sum(-1))
        torch.testing.assert_close(found.final_keys[:, head], keys[[3, 7]])
        torch.testing.assert_close(found.final_values[:, head], values[[3, 7]])


@pytest.mark.usefixtures("cpp_kernels")
def test_what_is_refused_runs_composed_and_watchers_see_either(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, finals = Chunks(torch.tensor([0, 4, 8])), torch.tensor([3, 7])
    narrow, wide = tensors(8, 2, 1, dim=8), tensors(8, 2, 1)
    assert refuses(*narrow) == "head_dim must be a multiple of 16; it is 8"
    assert "float32" in str(refuses(*(x.double() for x in wide)))
    for inputs in (narrow, wide):
        seen: list[Tensor] = []
        with scan_calls.shown_to(lambda gate, inputs, _, seen=seen: seen.extend((gate, *inputs))):
            found = chunk_states(*inputs, chunks, finals)
        assert [x.flatten(1).shape for x in seen] == [inputs[0].flatten(1).shape] * 3
        torch.testing.assert_close(found, composed_states(*inputs, chunks, finals))
    monkeypatch.setenv("BRAID_SCAN_BACKEND", "loop")
    monkeypatch.setattr("kernels.gated_scan.chunk_states._CPP", None)  # not even asked
    assert chunk_states(*wide, chunks, finals).values.equal(composed_states(*wide, chunks, finals).values)
