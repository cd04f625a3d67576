"""The public call: choosing a backend, defaults, and what it refuses."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

import kernels.interval_attention as package
from kernels.interval_attention import Intervals, backends, interval_attention


def inputs() -> tuple[Tensor, Tensor, Tensor, Intervals]:
    q, k, v = torch.randn(3, 9, 4, 8, generator=torch.Generator().manual_seed(0))
    return q, k[:, :2], v[:, :2], Intervals(torch.zeros(1, 9, dtype=torch.int64), torch.arange(1, 10), (2,))


def test_default_scale_and_head_order_are_those_of_pytorch() -> None:
    q, k, v, intervals = inputs()
    truth = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (q, k, v)), is_causal=True, enable_gqa=True
    )
    for name in backends():
        torch.testing.assert_close(interval_attention(q, k, v, intervals, backend=name)[0], truth[0].transpose(0, 1))


def test_a_sink_takes_its_share() -> None:
    q, k, v, intervals = inputs()
    sink = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    plain, lse = interval_attention(q, k, v, intervals)
    out, joint = interval_attention(q, k, v, intervals, extra_score=sink)
    torch.testing.assert_close(out, plain * torch.sigmoid(lse - sink)[..., None])
    torch.testing.assert_close(joint, torch.logaddexp(lse, sink))


@pytest.mark.parametrize("name", list(backends()))
def test_lse_carries_no_gradient(name: str) -> None:
    q, k, v, intervals = inputs()
    out, lse = interval_attention(q.requires_grad_(), k, v, intervals, backend=name)
    assert out.requires_grad
    assert not lse.requires_grad


def test_environment_forces_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name, run in package._BACKENDS.items():
        monkeypatch.setitem(package._BACKENDS, name, lambda *a, n=name, r=run: calls.append(n) or r(*a))
    interval_attention(*inputs())
    monkeypatch.setenv("BRAID_ATTENTION_BACKEND", "reference")
    interval_attention(*inputs())
    interval_attention(*inputs(), backend="blocked")
    assert calls == ["blocked", "reference", "blocked"]


def test_unknown_backends_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'blokced'.*reference, blocked.*did you mean 'blocked'"):
        interval_attention(*inputs(), backend="blokced")
    monkeypatch.setenv("BRAID_ATTENTION_BACKEND", "nothing")
    with pytest.raises(ValueError, match="'nothing'"):
        interval_attention(*inputs())


def test_a_slower_automatic_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    package._warn_slow.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [package._resolve(None, device) for device in ("cpu", "mps", "mps")] == ["blocked"] * 3
    assert [record.getMessage() for record in caplog.records if "mps" in record.getMessage()] == [
        "interval attention has no fused kernel for mps: 'blocked' runs as matrix products there"
    ]
    assert len(caplog.records) == 1


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
