"""A decoding step attends to the slots in use, and to nothing else."""

from __future__ import annotations

import pytest
import torch

from kernels.interval_attention.slots import Slots, attend_slots


@pytest.mark.parametrize("used", [[5, 5, 5], [1, 5, 3], [7, 7, 7]])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_equals_softmax_over_the_slots_in_use(used, kv_heads, extra, dtype, with_gradients):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, 4, 8, generator=generator, dtype=torch.float64).to(dtype)
    keys, values = torch.randn(2, 3, kv_heads, 7, 8, generator=generator, dtype=torch.float64).to(dtype)
    score = torch.randn(3, 4, generator=generator, dtype=torch.float64) if extra else None
    with torch.set_grad_enabled(with_gradients):
        out = attend_slots(q, keys, values, Slots(torch.tensor(used)), extra_score=score)
    assert out.dtype == dtype
    assert out.shape == q.shape
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    for row, count in enumerate(used):
        for head in range(4):
            group = head // (4 // kv_heads)
            scores = keys[row, group, :count].double() @ q[row, head].double() / 8**0.5
            weights = scores.exp() / (scores.exp().sum() + (0 if score is None else score[row, head].exp()))
            expected = weights @ values[row, group, :count].double()
            torch.testing.assert_close(out[row, head].double(), expected, atol=tolerance, rtol=tolerance)


def test_slots_that_no_row_uses_may_hold_anything():
    q, keys, values = torch.randn(2, 2, 4), torch.full((2, 2, 6, 4), torch.nan), torch.full((2, 2, 6, 4), torch.nan)
    keys[:, :, :3], values[:, :, :3] = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 3, 4)
    assert attend_slots(q, keys, values, Slots(torch.tensor([3, 3]))).isfinite().all()
