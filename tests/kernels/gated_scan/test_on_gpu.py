"""The scan on a GPU, at sizes with many chunks. Without one these tests are skipped, and say so."""

from __future__ import annotations

import pytest
import torch

from kernels.gated_scan import Chunks, gated_scan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.mark.parametrize("lengths", [[16] * 100, [16] * 9 + [5, 16, 1], [3000, 7]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_loop_on_the_cpu(lengths: list[int], dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    shape = sum(lengths), 4, 40
    values = [torch.rand(shape, generator=random), *torch.randn(2, *shape, generator=random)]
    results = []
    for device in ("cpu", "cuda"):
        gate, *inputs = leaves = [x.to(device, dtype).requires_grad_() for x in values]
        chunks = Chunks(torch.tensor([0, *lengths], device=device).cumsum(0))
        states = gated_scan(gate, inputs, chunks, backend="triton" if device == "cuda" else "loop")
        torch.autograd.backward(states, [torch.ones_like(x) for x in states])
        results.append([x.detach().cpu() for x in (*states, *(leaf.grad for leaf in leaves))])
    for ours, truth in zip(*results, strict=True):
        tolerance = 1e-4 if ours.dtype == torch.float32 else 2**-7
        torch.testing.assert_close(ours, truth, rtol=tolerance, atol=tolerance)
