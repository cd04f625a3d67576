"""The public call: choosing a backend, defaults, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.interval_attention import Intervals, backends, interval_attention, prefer

TRAINED_HERE = [
    name for name, reason in backends().items() if reason == "available" and name not in ("cpp", "flash", "flex")
]


def inputs() -> tuple[Tensor, Tensor, Tensor, Intervals]:
    q, k, v = torch.randn(3, 9, 4, 8, generator=torch.Generator().manual_seed(0))
    return q, k[:, :2], v[:, :2], Intervals(torch.zeros(1, 9, dtype=torch.int64), torch.arange(1, 10), (2,))


def test_default_scale_and_head_order_are_those_of_pytorch() -> None:
    q, k, v, intervals = inputs()
    truth = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (q, k, v)), is_causal=True, enable_gqa=True
    )
    for name in TRAINED_HERE:
        torch.testing.assert_close(interval_attention(q, k, v, intervals, backend=name)[0], truth[0].transpose(0, 1))


def test_a_sink_takes_its_share() -> None:
    q, k, v, intervals = inputs()
    sink = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    plain, lse = interval_attention(q, k, v, intervals)
    out, joint = interval_attention(q, k, v, intervals, extra_score=sink)
    torch.testing.assert_close(out, plain * torch.sigmoid(lse - sink)[..., None])
    torch.testing.assert_close(joint, torch.logaddexp(lse, sink))


@pytest.mark.parametrize("name", TRAINED_HERE)
def test_lse_carries_no_gradient(name: str) -> None:
    q, k, v, intervals = inputs()
    out, lse = interval_attention(q.requires_grad_(), k, v, intervals, backend=name)
    assert out.requires_grad
    assert not lse.requires_grad


def test_every_backend_is_named_with_a_reason() -> None:
    assert list(backends()) == ["reference", "blocked", "cpp", "triton", "flash", "flex"]
    assert backends()["reference"] == backends()["blocked"] == "available"
    assert all(backends().values())


def test_a_backend_is_forced_by_the_call_the_environment_and_the_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order; none of these exists, so that whoever was obeyed is in the message."""
    for name in ("by_call", "by_environment"):
        with pytest.raises(ValueError, match=f"no backend '{name}'"):
            interval_attention(*inputs(), backend="by_call" if name == "by_call" else None)
        monkeypatch.setenv("BRAID_ATTENTION_BACKEND", "by_environment")
    monkeypatch.delenv("BRAID_ATTENTION_BACKEND")
    with pytest.raises(ValueError, match="did you mean 'blocked'"):
        prefer("blokced")


def test_refuses_what_does_not_fit() -> None:
    q, k, v, intervals = inputs()
    with pytest.raises(ValueError, match="H a multiple of G"):
        interval_attention(q[:, :3], k, v, intervals)
    with pytest.raises(ValueError, match="reach key 9, there are only 8"):
        interval_attention(q, k[:8], v[:8], intervals)
    with pytest.raises(ValueError, match="9 queries and 2 key/value heads"):
        interval_attention(q[:5], k, v, intervals)
    with pytest.raises(ValueError, match="floating-point type"):
        interval_attention(q.double(), k, v, intervals)
    with pytest.raises(ValueError, match="come with extra_score"):
        interval_attention(q, k, v, intervals, extra_value=q)
    with pytest.raises(ValueError, match="extra_score must be"):
        interval_attention(q, k, v, intervals, extra_score=q[..., 0, 0])
