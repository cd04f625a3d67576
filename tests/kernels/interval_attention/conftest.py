"""Intervals of every mixer, and the comparison of a backend with the definition: forward, backward, empty rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.interval_attention import Intervals
from kernels.interval_attention.reference import reference_attention

Run = Callable[..., tuple[Tensor, Tensor]]
Case = tuple[Intervals, list[Tensor]]

LENGTHS = (1, 5, 20, 3)  # documents before the last one
CHUNK, WINDOW, GROUP = 4, 7, 8


def _starts(n: int) -> tuple[Tensor, Tensor]:
    """(first token of each token's document, position in it) [n]."""
    lengths = torch.tensor([*LENGTHS, n - sum(LENGTHS)])
    first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return first, torch.arange(n) - first


def _finals(n: int) -> tuple[Tensor, Tensor, int]:
    """(start, end) over the final states of finished chunks, and how many there are."""
    _, position = _starts(n)
    finished = (position % CHUNK == CHUNK - 1).long()
    before = finished.cumsum(0) - finished
    return before - position // CHUNK, before, int(finished.sum())


def _intervals(kind: str, n: int, kv_heads: tuple[int, ...], device: str) -> tuple[Intervals, int]:
    token, keys = torch.arange(n), n
    first, position = _starts(n)
    end = token + 1
    if kind == "global":
        starts = [token * 0]
    elif kind == "documents":
        starts = [first]
    elif kind == "window":
        starts = [torch.maximum(first, token - WINDOW + 1)]
    elif kind == "long short":
        starts = [torch.maximum(first, token - WINDOW + 1), first]
    elif kind == "shifted groups":
        shifted = (position + GROUP // 2) // GROUP * GROUP - GROUP // 2
        starts = [first + position // GROUP * GROUP, first + shifted.clamp(min=0)]
    elif kind == "finals":
        start, end, keys = _finals(n)
        starts = [start]
    elif kind == "continued":  # queries of one document whose earlier keys come from a cache
        starts, end, keys = [token + 3], token + 10, n + 12
    elif kind == "nothing":
        starts, end, keys = [token * 0], token * 0, 3
    else:
        assert kind == "any order"
        random = torch.Generator().manual_seed(n)
        keys = n // 2 + 1
        end = torch.randint(0, keys + 1, (n,), generator=random).sort().values
        starts = [torch.randint(0, keys, (n,), generator=random).sort().values for _ in kv_heads]
    if len(starts) == 1:
        kv_heads = (sum(kv_heads),)
    return Intervals(torch.stack(starts).to(device), end.to(device), kv_heads), keys


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """`make_case(kind, n)`: intervals, and the tensors q, k, v and as many extras as asked for."""

    def make(
        kind: str,
        n: int,
        kv_heads: tuple[int, ...] = (1, 1),
        repeats: int = 2,
        head_dim: int = 8,
        extras: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> Case:
        intervals, keys = _intervals(kind, n, kv_heads, device)
        random = torch.Generator().manual_seed(0)
        heads = sum(kv_heads) * repeats
        shapes = [(n, heads, head_dim), *[(keys, sum(kv_heads), head_dim)] * 2, (n, heads), (n, heads, head_dim)]
        drawn = [torch.randn(shape, generator=random).to(device, dtype) for shape in shapes[: 3 + extras]]
        return intervals, drawn

    return make


def _evaluate(run: Run, case: Case, scale: float) -> list[Tensor]:
    intervals, tensors = case
    leaves = [x.clone().requires_grad_() for x in tensors]
    out, lse = run(*leaves[:3], intervals, scale, *[*leaves[3:], None, None][:2])
    random = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=random).to(out))
    return [out.detach(), lse, *(x.grad for x in leaves)]


@pytest.fixture
def assert_agrees() -> Callable[..., None]:
    """`assert_agrees(run, case)`: out, lse and all gradients are those of the definition in float32."""

    def check(run: Run, case: Case, scale: float = 0.6) -> None:
        intervals, tensors = case
        ours = _evaluate(run, case, scale)
        truth = _evaluate(reference_attention, (intervals, [x.float() for x in tensors]), scale)
        dtype = tensors[0].dtype
        assert [x.dtype for x in ours] == [dtype, torch.float32, *[dtype] * len(tensors)]
        empty = truth[1] == -torch.inf
        assert (ours[1] == -torch.inf).equal(empty)
        assert (ours[0][empty] == 0).all()
        assert (ours[2][empty] == 0).all()
        exact = dtype == torch.float32
        for a, b in zip(ours, truth, strict=True):
            shown = b.isfinite()
            assert a[shown].isfinite().all()
            if shown.any():
                # Terms of unit size may cancel to 0, as where queries see one key each: their rounding is left.
                error = (a.float() - b)[shown].abs().max() / b[shown].abs().max().clamp(min=1.0)
                assert error < (1e-5 if exact else 0.02), error

    return check
