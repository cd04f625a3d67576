"""The calls that `flash` plans, made by their definition in plain PyTorch, against the definition of the operation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from kernels.interval_attention import Intervals, backends, flash_plan, interval_attention
from kernels.interval_attention.flash import FLASH, PyTorchVarlen, flash_attention
from kernels.interval_attention.flash_plan import VarlenCall, plan_calls
from kernels.interval_attention.flash_reference import PlainVarlen

KINDS = ("global", "documents", "window", "long short", "shifted groups", "finals", "continued", "nothing")
run = partial(flash_attention, varlen=PlainVarlen)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extras", [0, 1, 2])
@pytest.mark.parametrize(("kv_heads", "repeats"), [((1, 1), 1), ((1, 2), 3)])
def test_equals_the_definition(
    kind: str,
    extras: int,
    kv_heads: tuple[int, ...],
    repeats: int,
    make_case: Callable[..., Any],
    assert_agrees: Callable[..., None],
) -> None:
    assert_agrees(run, make_case(kind, 61, kv_heads, repeats, extras=extras))


@pytest.mark.parametrize("n", [30, 33, 64])
def test_bfloat16(n: int, make_case: Callable[..., Any], assert_agrees: Callable[..., None]) -> None:
    assert_agrees(run, make_case("finals", n, extras=2, dtype=torch.bfloat16))


@pytest.mark.parametrize("kind", KINDS)
def test_a_backward_in_parts_equals_the_definition(
    kind: str, make_case: Callable[..., Any], assert_agrees: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash_plan, "MIN_QUERIES", 1)
    intervals, tensors = make_case(kind, 61, (1, 2), 3, extras=2)
    assert_agrees(run, (intervals, tensors))
    calls = plan_calls(intervals, len(tensors[1]))
    several = any(len(call.cu_rows) > 2 for call in calls if call is not None)
    assert any(call.parts for call in calls if call is not None) == several


def test_memory_of_the_backward_is_bounded() -> None:
    """RAT over packed documents: rows of few queries each would be padded to many times the queries."""
    documents, length, chunk = 256, 256, 64
    token = torch.arange(documents * length)
    start = token // length * (length // chunk)
    end = start + token % length // chunk
    (call,) = plan_calls(Intervals(start[None], end, (2,)), documents * length // chunk)
    assert call is not None
    padded = [
        (part.rows.stop - part.rows.start + 128 * (len(part.call.cu_rows) - 1)) * call.pack for part in call.parts
    ]
    assert sum(padded) > 32 * len(token)
    assert max(padded) < 3.2 * len(token)


def test_rows_that_see_nothing_in_a_call() -> None:
    """As flash attention says it: out 0, lse +inf."""
    cu = torch.tensor([0, 3], dtype=torch.int32)
    call = VarlenCall(1, None, None, None, cu, torch.tensor([0, 2], dtype=torch.int32), 3, 2, None)
    q, k = torch.ones(3, 1, 4), torch.ones(2, 1, 4)
    out, lse = PlainVarlen.forward(q, k, k, call, 0.0)
    assert out[:, 0, 0].tolist() == [0, 1, 1]
    torch.testing.assert_close(lse, torch.tensor([[torch.inf, 0.0, 0.6931472]]))


@pytest.mark.parametrize("kind", ["window", "finals"])
def test_pytorch_takes_the_calls(kind: str, make_case: Callable[..., Any]) -> None:
    """Its operators' own checks of arguments, and the shapes they give, without a GPU."""
    intervals, (q, k, v) = make_case(kind, 61, dtype=torch.bfloat16)
    (call,) = plan_calls(intervals, len(k))
    assert call is not None
    rows, keys, heads = call.cu_rows[-1], call.cu_keys[-1], q.shape[1] * call.pack
    q, out = (torch.empty(rows, heads, 8, dtype=q.dtype, device="meta") for _ in range(2))
    k, v = (torch.empty(keys, 2, 8, dtype=q.dtype, device="meta") for _ in range(2))
    made, lse = PyTorchVarlen.forward(q, k, v, call, 0.3)
    assert (made.shape, lse.shape, lse.dtype) == (q.shape, (heads, rows), torch.float32)
    grads = PyTorchVarlen.backward(out, q, k, v, out, lse, call, 0.3)
    assert [grad.shape for grad in grads] == [q.shape, k.shape, v.shape]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_without_a_gpu_it_says_so(make_case: Callable[..., Any]) -> None:
    assert backends()["flash"] == "there is no GPU"
    intervals, tensors = make_case("global", 30)
    with pytest.raises(ValueError, match="'flash' cannot run here: there is no GPU; these can: reference, blocked"):
        interval_attention(*tensors, intervals, backend="flash")


class OnGpu:
    """Stands for a tensor on a GPU where only its kind is asked."""

    device = torch.device("cuda")

    def __init__(self, dtype: torch.dtype = torch.bfloat16, *shape: int) -> None:
        self.dtype, self.shape = dtype, shape or (61, 4, 64)


def test_what_it_does_not_serve_is_said(make_case: Callable[..., Any]) -> None:
    intervals, (_, k, v) = make_case("window", 61)

    def refusal(q: object) -> str | None:
        return FLASH.refuses(q, k, v, intervals)

    assert refusal(OnGpu()) is None
    assert refusal(OnGpu(torch.float32)) == "it serves bfloat16 and float16, not float32"
    assert refusal(OnGpu(torch.float16, 61, 4, 12)) == "it serves a head_dim that is a multiple of 8 up to 256, not 12"
    assert (
        refusal(OnGpu(torch.float16, 61, 4, 264)) == "it serves a head_dim that is a multiple of 8 up to 256, not 264"
    )
    assert refusal(k) == "it runs on cuda, the tensors are on cpu"
    anything, (_, k, v) = make_case("any order", 61)
    assert "neither move on by one key" in str(FLASH.refuses(OnGpu(), k, v, anything))
    token = torch.arange(65536)
    alone, keys = Intervals(token[None], token + 1, (2,)), torch.empty(65536, 2, 64, device="meta")
    assert FLASH.refuses(OnGpu(), keys, keys, alone) == "the queries fall into 65536 sequences, it takes 65535"
