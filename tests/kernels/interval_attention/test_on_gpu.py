"""Every backend for GPUs on a GPU, at sizes with many blocks. Without one these tests are skipped, and say so."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from kernels.interval_attention import Intervals, backends, interval_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
KINDS = ("global", "documents", "window", "long short", "shifted groups", "finals")


def run(backend: str, q: Any, k: Any, v: Any, intervals: Intervals, scale: float, *extra: Any) -> Any:
    score, value = extra
    return interval_attention(q, k, v, intervals, scale=scale, extra_score=score, extra_value=value, backend=backend)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["triton", "flash", "flex"])
@pytest.mark.parametrize("extras", [0, 1, 2])
def test_equals_the_definition(
    backend: str, kind: str, extras: int, make_case: Callable[..., Any], assert_agrees: Callable[..., None]
) -> None:
    if backends()[backend] != "available":
        pytest.skip(f"{backend}: {backends()[backend]}")
    case = make_case(kind, 1000, (2, 2), 2, 64, extras, torch.bfloat16, "cuda")
    assert_agrees(partial(run, backend), case, 0.125)


@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_triton_in_float32(head_dim: int, make_case: Callable[..., Any], assert_agrees: Callable[..., None]) -> None:
    case = make_case("any order", 700, (1, 1), 2, head_dim, 2, device="cuda")
    assert_agrees(partial(run, "triton"), case, head_dim**-0.5)


def test_triton_gives_the_same_bits_each_time(make_case: Callable[..., Any]) -> None:
    intervals, tensors = make_case("shifted groups", 1000, (2, 2), 2, 64, 0, torch.bfloat16, "cuda")
    results = []
    for _ in range(2):
        leaves = [x.clone().requires_grad_() for x in tensors]
        out, _ = interval_attention(*leaves, intervals, backend="triton")
        out.sum().backward()
        results.append([out, *(x.grad for x in leaves)])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))
