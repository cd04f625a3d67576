"""The Triton kernels against the definition: in the interpreter, or on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels.interval_attention import Intervals, backends, interval_attention
from kernels.interval_attention.reference import reference_attention

triton_attention = pytest.importorskip("kernels.interval_attention.triton_attention", reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
run = triton_attention.run

KINDS = ("global", "window", "shifted groups", "finals", "continued", "any order")


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_definition(kind: str, make_case: Callable[..., Any], assert_agrees: Callable[..., None]) -> None:
    """Documents and chunks that no block size divides, queries that share keys, two groups of heads."""
    assert_agrees(run, make_case(kind, 70, device=DEVICE))


@pytest.mark.parametrize("kind", ["finals", "any order"])
@pytest.mark.parametrize("extras", [1, 2])
def test_the_extra_entry(
    kind: str, extras: int, make_case: Callable[..., Any], assert_agrees: Callable[..., None]
) -> None:
    assert_agrees(run, make_case(kind, 45, extras=extras, device=DEVICE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_float32_statistics(
    dtype: torch.dtype, make_case: Callable[..., Any], assert_agrees: Callable[..., None]
) -> None:
    intervals, tensors = make_case("window", 45, extras=2, dtype=dtype, device=DEVICE)
    assert_agrees(run, (intervals, tensors))
    _, lse = run(*tensors[:3], intervals, 0.6, *tensors[3:])
    exact = reference_attention(*(x.float() for x in tensors[:3]), intervals, 0.6, *(x.float() for x in tensors[3:]))
    torch.testing.assert_close(lse, exact[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("n", "kv_heads", "repeats", "head_dim"), [(40, (1,), 1, 3), (33, (1, 2), 3, 16), (32, (2,), 1, 20)]
)
def test_any_shape(
    n: int,
    kv_heads: tuple[int, ...],
    repeats: int,
    head_dim: int,
    make_case: Callable[..., Any],
    assert_agrees: Callable[..., None],
) -> None:
    kind = "any order" if len(kv_heads) > 1 else "documents"
    assert_agrees(run, make_case(kind, n, kv_heads, repeats, head_dim, device=DEVICE))


def test_one_token(assert_agrees: Callable[..., None]) -> None:
    ends = torch.ones(1, dtype=torch.int64, device=DEVICE)
    random = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 1, 4, generator=random).to(DEVICE) for _ in range(3)]
    assert_agrees(run, (Intervals(ends[None] - 1, ends, (1,)), tensors))


@pytest.mark.parametrize("extras", [0, 1, 2])
def test_rows_that_see_nothing(extras: int, make_case: Callable[..., Any], assert_agrees: Callable[..., None]) -> None:
    """No key at all, alone and beside an extra entry, one of which is none."""
    intervals, tensors = make_case("nothing", 35, extras=extras, device=DEVICE)
    if extras:
        tensors[3][4] = -torch.inf
    assert_agrees(run, (intervals, tensors))


def test_blocks_of_keys_that_no_query_sees_are_not_read(make_case: Callable[..., Any]) -> None:
    """A window of 7 over 140 keys: whatever the later rows do not see may hold anything."""
    intervals, (q, k, v) = make_case("window", 300, device=DEVICE, repeats=1, kv_heads=(1,))
    k[:160], v[:160] = torch.nan, torch.nan
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, _ = run(*leaves, intervals, 1.0, None, None)
    assert out[200:].isfinite().all()
    out[200:].sum().backward()
    assert v.grad is not None
    assert v.grad[200:].isfinite().all()


def test_layouts_and_expanded_scores(make_case: Callable[..., Any]) -> None:
    """Slices of one projection, values that are not contiguous, and one sink logit per head."""
    intervals, (q, k, v) = make_case("window", 40, device=DEVICE, repeats=1)
    packed = torch.stack([q, k, v], 1).requires_grad_()
    apart = [x.clone().requires_grad_() for x in (q, k, v)]
    logit = torch.tensor([0.3, -1.0], device=DEVICE, requires_grad=True)
    other = logit.detach().clone().requires_grad_()
    run(*packed.unbind(1), intervals, 0.5, logit.expand(40, -1), None)[0].sum().backward()
    reference_attention(*apart, intervals, 0.5, other.expand(40, -1), None)[0].sum().backward()
    torch.testing.assert_close(packed.grad, torch.stack([x.grad for x in apart], 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logit.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_what_it_does_not_serve_is_said(make_case: Callable[..., Any]) -> None:
    assert backends()["triton"] == "available"
    intervals, (q, k, v) = make_case("global", 30, device=DEVICE)
    with pytest.raises(ValueError, match=r"'triton' cannot serve this call.*not float64"):
        interval_attention(q.double(), k.double(), v.double(), intervals, backend="triton")
    wide = q.new_zeros(30, 1, 300)
    with pytest.raises(ValueError, match="head_dim of up to 256, not 300"):
        interval_attention(wide, wide, wide, make_case("global", 30, (1,), device=DEVICE)[0], backend="triton")
