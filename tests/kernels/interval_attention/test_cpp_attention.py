"""The C++ kernel against the definition, forward and backward, for any intervals, threads and layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.interval_attention import Intervals, default, interval_attention
from kernels.interval_attention.cpp_attention import SCRATCH_BYTES, _segments, refuses, run
from kernels.interval_attention.reference import reference_attention

pytestmark = pytest.mark.usefixtures("cpp_kernels")
KINDS = ["global", "documents", "window", "long short", "shifted groups", "finals", "continued", "nothing", "any order"]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_definition(kind: str, make_case: Callable, assert_agrees: Callable) -> None:
    @settings(deadline=None, max_examples=8)
    @given(
        n=st.integers(30, 330),
        repeats=st.integers(1, 3),
        head_dim=st.sampled_from([16, 48, 64]),
        extras=st.integers(0, 2),
        threads=st.integers(1, 3),
    )
    def check(n: int, repeats: int, head_dim: int, extras: int, threads: int) -> None:
        torch.set_num_threads(threads)
        assert_agrees(run, make_case(kind, n, repeats=repeats, head_dim=head_dim, extras=extras), scale=0.3)

    check()


@pytest.mark.parametrize("width", [3, 63, 64, 65, 200])
@pytest.mark.parametrize("threads", [1, 3])
def test_windows_across_tiles(width: int, threads: int, assert_agrees: Callable) -> None:
    """One key/value head on three threads: keys are divided into segments whose gradients meet in the queries."""
    torch.set_num_threads(threads)
    p = torch.arange(500)
    intervals = Intervals((p - width + 1).clamp(min=0)[None], p + 1, (1,))
    random = torch.Generator().manual_seed(0)
    tensors = [torch.randn(500, heads, 64, generator=random) for heads in (2, 1, 1)]
    assert_agrees(run, (intervals, tensors), scale=0.125)


def test_the_number_of_threads_changes_no_bit_forward_and_the_same_number_none_backward(make_case: Callable) -> None:
    intervals, tensors = make_case("any order", 300, head_dim=16, extras=2)
    found = []
    for threads in (1, 3, 3):
        torch.set_num_threads(threads)
        leaves = [x.clone().requires_grad_() for x in tensors]
        out, lse = run(*leaves[:3], intervals, 0.3, *leaves[3:])
        out.square().sum().backward()
        found.append((out, lse, [x.grad for x in leaves]))
    assert all(out.equal(found[0][0]) and lse.equal(found[0][1]) for out, lse, _ in found)
    assert all(a.equal(b) for a, b in zip(found[1][2], found[2][2], strict=True))


@pytest.mark.parametrize("threads", [2, 6, 16, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (32, 8), (32, 1), (3, 3)])
@pytest.mark.parametrize("tokens", [64, 1024, 16_384, 131_072])
def test_scratch_of_the_backward_is_bounded_on_any_number_of_threads(
    tokens: int, heads: int, kv_heads: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    q, k = (torch.empty(tokens, count, 128, device="meta") for count in (heads, kv_heads))
    segments, held = _segments(q, k), 4 * (q.nbytes + k.nbytes)
    assert (segments - 1) * q.nbytes <= max(SCRATCH_BYTES, held)
    busy = kv_heads % threads == 0 or segments * kv_heads >= 2 * threads
    assert busy or segments == tokens // 64 or segments * q.nbytes > max(SCRATCH_BYTES, held)


def test_strided_inputs() -> None:
    """Slices of one projection, an expanded gradient, channels that are no neighbours: no layout is assumed."""
    p = torch.arange(150)
    intervals = Intervals((p - 63).clamp(min=0)[None], p + 1, (2,))
    packed = torch.randn(150, 3, 2, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    apart = [x.detach().contiguous().requires_grad_() for x in packed.unbind(1)]
    run(*packed.unbind(1), intervals, 0.3, None, None)[0].sum().backward()
    reference_attention(*apart, intervals, 0.3, None, None)[0].sum().backward()
    torch.testing.assert_close(packed.grad, torch.stack([x.grad for x in apart], 1), rtol=1e-4, atol=1e-5)
    turned = [x.detach().mT.contiguous().mT for x in apart]
    torch.testing.assert_close(
        run(*turned, intervals, 0.3, None, None)[0], reference_attention(*apart, intervals, 0.3, None, None)[0]
    )


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("threads", [1, 3])
def test_what_torch_makes_by_default_is_no_result_of_it(
    threads: int, make_case: Callable, assert_agrees: Callable
) -> None:
    torch.set_num_threads(threads)
    assert_agrees(run, make_case("finals", 330, kv_heads=(1,), head_dim=16, extras=2), scale=0.3)


def test_hidden_keys_touch_nothing() -> None:
    """Not even as infinities and nans; one that is seen shows."""
    p = torch.arange(200)
    intervals = Intervals((p * 0)[None], p + 1, (1,))
    q, k, v = torch.randn(3, 200, 1, 16, generator=torch.Generator().manual_seed(0)).unbind(0)
    before = run(q, k, v, intervals, 0.3, None, None)[0]
    k, v = k.clone(), v.clone()
    k[100], v[101:] = torch.nan, torch.inf
    after = run(q, k, v, intervals, 0.3, None, None)[0]
    assert after[:100].equal(before[:100])
    assert after[100:].isnan().all()


@pytest.mark.parametrize("extras", [0, 1, 2])
def test_an_extra_score_of_minus_infinity_is_no_entry(extras: int, make_case: Callable) -> None:
    intervals, tensors = make_case("finals", 90, head_dim=16, extras=2)
    tensors[3].fill_(-torch.inf)
    leaves = [x.requires_grad_() for x in tensors]
    out, lse = run(*leaves[:3], intervals, 0.3, *[*leaves[3 : 3 + extras], None, None][:2])
    plain, plain_lse = reference_attention(*leaves[:3], intervals, 0.3, None, None)
    torch.testing.assert_close((out, lse), (plain, plain_lse))
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in leaves[: 3 + extras])
    assert all((x.grad == 0).all() for x in leaves[3 : 3 + extras])


def test_what_is_built_runs_by_default_and_what_it_refuses_runs_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    p = torch.arange(9)
    intervals = Intervals((p * 0)[None], p + 1, (2,))
    assert default("cpu") == "cpp"
    for shape, dtype, reason in (
        ((9, 2, 24), torch.float32, "head_dim must be a multiple of 16 up to 256; it is 24"),
        ((9, 2, 272), torch.float32, "it is 272"),
        ((9, 2, 16), torch.bfloat16, "it computes in float32, not bfloat16"),
    ):
        q = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert reason in str(refuses(q))
        torch.testing.assert_close(
            interval_attention(q, q, q, intervals), interval_attention(q, q, q, intervals, backend="blocked")
        )
        with pytest.raises(ValueError, match=f"'cpp' cannot serve this call: .*{reason}"):
            interval_attention(q, q, q, intervals, backend="cpp")
    monkeypatch.setenv("BRAID_KERNELS", "/nowhere")
    assert default("cpu") == "blocked"
    with pytest.raises(ValueError, match="run `braid build-kernels`"):
        interval_attention(q, q, q, intervals, backend="cpp")
