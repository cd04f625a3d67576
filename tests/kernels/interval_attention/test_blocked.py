"""The fast path against the definition: values, statistics, gradients, for both tile kernels."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.interval_attention import Intervals, interval_attention
from kernels.interval_attention import plan as planning
from kernels.interval_attention.blocked import blocked_attention
from kernels.interval_attention.dense import Dense, FlashCPU, Matmul
from kernels.interval_attention.reference import reference_attention

SMALL = {"MIN_TRIANGLE": 4, "MIN_BLOCK": 2, "MAX_BLOCK": 8, "MAX_JUMP": 5, "MIN_INTERIOR": 3, "MAX_BATCH_KEYS": 24}
KERNELS = [FlashCPU, Matmul]


class Case(NamedTuple):
    intervals: Intervals
    tensors: list[Tensor]  # q, k, v and up to two extras


def tensors(
    n: int, m: int, kv_heads: int, repeats: int, width: int, extras: int, dtype: torch.dtype, seed: int
) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    heads = kv_heads * repeats
    sizes = [(n, heads, width), (m, kv_heads, width), (m, kv_heads, width), (n, heads), (n, heads, width)]
    return [torch.randn(size, generator=random, dtype=torch.float64).to(dtype) for size in sizes[: 3 + extras]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n, m = draw(st.integers(1, 50)), draw(st.integers(1, 60))
    position = torch.arange(n)

    def edge() -> Tensor:
        kind = draw(st.sampled_from(["random", "slide", "steps", "constant"]))
        shift = draw(st.integers(-20, 40))
        if kind == "random":
            return torch.tensor(draw(st.lists(st.integers(0, m), min_size=n, max_size=n))).sort().values
        if kind == "steps":
            width = draw(st.integers(1, 12))
            return ((position + shift) // width * draw(st.integers(1, width))).clamp(0, m)
        return (position + shift if kind == "slide" else torch.full((n,), shift)).clamp(0, m)

    kv_heads = tuple(draw(st.lists(st.integers(1, 2), min_size=1, max_size=2)))
    intervals = Intervals(torch.stack([edge() for _ in kv_heads]), edge(), kv_heads)
    repeats, width, extras = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 8])), draw(st.integers(0, 2))
    return Case(
        intervals, tensors(n, m, sum(kv_heads), repeats, width, extras, torch.float64, draw(st.integers(0, 99)))
    )


def evaluate(case: Case, kernel: type[Dense] | None, scale: float = 0.7) -> list[Tensor]:
    """out, lse and the gradients of every input; kernel None is the definition."""
    leaves = [x.clone().requires_grad_() for x in case.tensors]
    extras: list[Tensor | None] = [*leaves[3:], None, None][:2]
    if kernel is None:
        out, lse = reference_attention(*leaves[:3], case.intervals, scale, *extras)
    else:
        out, lse = blocked_attention(*leaves[:3], case.intervals, scale, *extras, kernel)
    random = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=random, dtype=torch.float64).to(out.dtype))
    return [out.detach(), lse, *(x.grad for x in leaves)]


def uniform(n: int, kind: str, heads: int = 2) -> Intervals:
    p = torch.arange(n)
    if kind == "groups":
        group = max(n // 4, 1)
        shifted = ((p + group // 2) // group * group - group // 2).clamp(min=0)
        return Intervals(torch.stack([p // group * group, shifted]), p + 1, (heads // 2, heads // 2))
    start = {"global": p * 0, "window": (p - 63).clamp(min=0), "finals": p * 0, "documents": p // 100 * 100}[kind]
    return Intervals(start[None], p // 16 if kind == "finals" else p + 1, (heads,))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sizes", [{}, SMALL], ids=["real blocks", "small blocks"])
def test_equals_the_definition(monkeypatch: pytest.MonkeyPatch, kernel: type[Dense], sizes: dict[str, int]) -> None:
    for name, value in sizes.items():
        monkeypatch.setattr(planning, name, value)

    @settings(deadline=None, max_examples=150 if sizes else 40)
    @given(cases())
    def check(case: Case) -> None:
        for ours, truth in zip(evaluate(case, kernel), evaluate(case, None), strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-10)

    check()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["global", "window", "groups", "finals", "documents"])
@pytest.mark.parametrize("n", [1, 17, 700])
def test_float32_equals_the_definition(kernel: type[Dense], kind: str, n: int) -> None:
    keys = n // 16 + 1 if kind == "finals" else n
    case = Case(uniform(n, kind), tensors(n, keys, 2, 2, 16, 2, torch.float32, 0))
    truth = evaluate(Case(case.intervals, [x.double() for x in case.tensors]), None)
    for ours, exact in zip(evaluate(case, kernel), truth, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 1000])
def test_whole_triangles_equal_the_definition(prefix: int) -> None:
    """Long enough for the kernel's own causal mode, with and without keys before the diagonal."""
    n = planning.MIN_TRIANGLE
    case = Case(
        Intervals(torch.zeros(1, n, dtype=torch.int64), torch.arange(n) + prefix + 1, (1,)),
        tensors(n, n + prefix, 1, 2, 8, 0, torch.float32, 0),
    )
    assert any(piece.causal for piece in case.intervals.plan[0])
    for ours, truth in zip(evaluate(case, FlashCPU), evaluate(case, None), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["window", "groups", "finals"])
def test_bfloat16_keeps_float32_statistics(kernel: type[Dense], kind: str) -> None:
    """bfloat16 has 8 bits: results within 2 % of the largest value; lse is as good as float32's scores allow."""
    n = 300
    case = Case(uniform(n, kind), tensors(n, n // 16 + 1 if kind == "finals" else n, 2, 1, 16, 2, torch.bfloat16, 0))
    truth = evaluate(Case(case.intervals, [x.float() for x in case.tensors]), None)
    results = evaluate(case, kernel)
    assert results[1].dtype == torch.float32
    assert all(x.dtype == torch.bfloat16 for x in [results[0], *results[2:]])
    torch.testing.assert_close(results[1], truth[1], rtol=1e-3, atol=2e-3)
    for ours, exact in zip(results, truth, strict=True):
        finite = exact.isfinite()
        assert (ours.float() - exact)[finite].abs().max() < 0.02 * exact[finite].abs().max()


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradcheck(monkeypatch: pytest.MonkeyPatch, kernel: type[Dense]) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(planning, name, value)
    p = torch.arange(10)
    intervals = Intervals(torch.stack([(p - 3).clamp(min=0), p // 4 * 4]), p, (1, 1))
    inputs = [x.requires_grad_() for x in tensors(10, 10, 2, 2, 3, 2, torch.float64, 0)]

    def out(q: Tensor, k: Tensor, v: Tensor, score: Tensor, value: Tensor) -> Tensor:
        return blocked_attention(q, k, v, intervals, 0.5, score, value, kernel)[0]

    assert torch.autograd.gradcheck(out, inputs)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_that_see_nothing(kernel: type[Dense]) -> None:
    p = torch.arange(200)
    case = Case(
        Intervals((p // 2)[None], (p - 50).clamp(0, 120), (2,)), tensors(200, 120, 2, 1, 8, 0, torch.float32, 0)
    )
    out, lse, *grads = evaluate(case, kernel)
    empty = case.intervals.end <= case.intervals.start[0]
    assert empty.any()
    assert not empty.all()
    assert (out[empty] == 0).all()
    assert (lse[empty] == -torch.inf).all()
    assert lse[~empty].isfinite().all()
    assert (grads[0][empty] == 0).all()
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("kernel", KERNELS)
def test_all_rows_empty(kernel: type[Dense]) -> None:
    zeros = torch.zeros(1, 5, dtype=torch.int64)
    for extras in range(3):
        case = Case(Intervals(zeros, zeros[0], (1,)), tensors(5, 3, 1, 1, 4, extras, torch.float32, 0))
        out, _, *grads = evaluate(case, kernel)
        assert out.equal(case.tensors[4] if extras == 2 else torch.zeros_like(out))
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_extra_score_of_minus_infinity_is_no_entry(kernel: type[Dense]) -> None:
    inputs = tensors(90, 6, 2, 1, 8, 2, torch.float64, 0)
    inputs[3].fill_(-torch.inf)
    plain = evaluate(Case(uniform(90, "finals"), inputs[:3]), kernel)
    with_extra = evaluate(Case(uniform(90, "finals"), inputs), kernel)
    for a, b in zip(plain, with_extra, strict=False):
        torch.testing.assert_close(a, b)
    assert all((grad == 0).all() for grad in with_extra[5:])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["global", "window", "groups", "finals", "documents"])
def test_hidden_keys_touch_nothing(kernel: type[Dense], kind: str) -> None:
    """Changing every key from 250 on changes no bit of the rows that end before, nor of their queries' gradients."""
    n, cut = 500, 250
    case = Case(uniform(n, kind), tensors(n, n, 2, 1, 8, 0, torch.float32, 0))
    changed = [x.clone() for x in case.tensors]
    changed[1][cut:] *= -3
    changed[2][cut:] += 7
    before, after = evaluate(case, kernel), evaluate(Case(case.intervals, changed), kernel)
    blind = case.intervals.end <= cut
    for i in range(3):
        assert before[i][blind].equal(after[i][blind])
    leaves = [x.clone().requires_grad_() for x in case.tensors]
    out, _ = blocked_attention(*leaves, case.intervals, 0.3, None, None, kernel)
    out[blind].sum().backward()
    assert all((x.grad[cut:] == 0).all() for x in leaves[1:])
    if kind != "finals":
        assert all((x.grad[:cut] != 0).any() for x in leaves[1:])


def test_a_window_of_w_sees_exactly_w_keys() -> None:
    """Values that are powers apart reveal which keys took part."""
    n, window = 200, 64
    p = torch.arange(n)
    intervals = Intervals((p - window + 1).clamp(min=0)[None], p + 1, (1,))
    q, k = torch.zeros(n, 1, n), torch.zeros(n, 1, n)
    out, lse = interval_attention(q, k, torch.eye(n)[:, None], intervals)
    distance = p[:, None] - p
    assert ((out[:, 0] > 0) == ((distance >= 0) & (distance < window))).all()
    torch.testing.assert_close(lse[:, 0], (p + 1).clamp(max=window).float().log())


@pytest.mark.parametrize("kernel", KERNELS)
def test_strided_inputs(kernel: type[Dense]) -> None:
    """Slices of one projection and an expanded gradient: no layout is assumed."""
    n = 150
    packed = torch.randn(n, 3, 2, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    apart = [x.detach().contiguous().requires_grad_() for x in packed.unbind(1)]
    blocked_attention(*packed.unbind(1), uniform(n, "window"), 0.3, None, None, kernel)[0].sum().backward()
    reference_attention(*apart, uniform(n, "window"), 0.3, None, None)[0].sum().backward()
    torch.testing.assert_close(packed.grad, torch.stack([x.grad for x in apart], 1), rtol=1e-4, atol=1e-5)
    turned = [x.detach().mT.contiguous().mT for x in apart]  # last dimension not contiguous
    ours = blocked_attention(*turned, uniform(n, "window"), 0.3, None, None, kernel)
    truth = reference_attention(*apart, uniform(n, "window"), 0.3, None, None)
    torch.testing.assert_close(ours[0], truth[0])
