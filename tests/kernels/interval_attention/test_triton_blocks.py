"""Block sizes of the Triton kernels: fixed for a type of GPU, and such that it can launch them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from kernels.interval_attention.triton_blocks import (
    BACKWARD_HOLDS,
    FORWARD_HOLDS,
    Device,
    blocks_for,
    shared_memory,
)

T4, A100, RTX_3090, H100 = Device(65536, 7), Device(166912, 8), Device(101376, 8), Device(232448, 9)


@pytest.mark.parametrize("device", [T4, A100, RTX_3090, H100, Device(101376, 12)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim", [3, 16, 64, 80, 128, 192, 256])
def test_what_is_chosen_fits(device: Device, dtype: torch.dtype, head_dim: int) -> None:
    if device is T4 and dtype == torch.float32 and head_dim > 128:
        with pytest.raises(ValueError, match=f"65536 bytes .* too few for float32 at a head_dim of {head_dim}"):
            blocks_for(device, head_dim, dtype)
        return
    for blocks, held in zip(blocks_for(device, head_dim, dtype), (FORWARD_HOLDS, BACKWARD_HOLDS), strict=True):
        assert shared_memory(blocks, held, device.capability, head_dim, dtype) <= device.shared_memory


@pytest.mark.parametrize(
    ("device", "head_dim", "dtype", "sizes"),
    [
        (H100, 64, torch.bfloat16, [(128, 64), (64, 64)]),
        (H100, 128, torch.bfloat16, [(128, 64), (64, 64)]),
        (H100, 256, torch.bfloat16, [(128, 32), (64, 32)]),
        (RTX_3090, 128, torch.bfloat16, [(128, 32), (64, 64)]),
        (RTX_3090, 256, torch.bfloat16, [(64, 32), (32, 32)]),
        (RTX_3090, 256, torch.float32, [(16, 16), (16, 16)]),
    ],
)
def test_block_sizes_of_a_type_of_gpu(
    device: Device, head_dim: int, dtype: torch.dtype, sizes: list[tuple[int, int]]
) -> None:
    """They decide the last bits of training: whoever changes them makes runs that go on differ from whole ones."""
    assert [(blocks.own, blocks.passing) for blocks in blocks_for(device, head_dim, dtype)] == sizes
