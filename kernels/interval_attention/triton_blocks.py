"""Block sizes of the Triton kernels of interval attention, by a fixed rule.

Block sizes decide how sums are grouped, and so the last bits of a result. Measured ones would differ from process to
process, and a resumed run from one that nothing stopped. So the type of GPU, head_dim and dtype alone decide here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton

MIN_BLOCK_D = 16  # the least depth of a matrix product
COPY_LESS = 8, 12  # compute capabilities whose matrix products are over when the next load starts: one copy less


@dataclass(frozen=True)
class Blocks:
    """A program holds `own` rows (queries; of the kernel over keys: keys) and walks over the others, `passing` a step.

    warps, stages: Triton's num_warps and num_stages. max_depth: the largest BLOCK_D that registers can hold.
    """

    own: int
    passing: int
    warps: int
    stages: int
    max_depth: int = 256


@dataclass(frozen=True)
class Device:
    """shared_memory: bytes that a program may use. capability: the major version of the compute capability."""

    shared_memory: int
    capability: int


# Tensors of which a program holds its own rows: the queries; their gradients of the output too, or keys and values.
FORWARD_HOLDS, BACKWARD_HOLDS = 1, 2
# The first that fits is taken: blocks as large as registers hold without spilling much, as ptxas tells for bf16.
FORWARD = (
    Blocks(128, 64, 8, 3, max_depth=128),
    Blocks(128, 32, 8, 2),
    Blocks(64, 32, 8, 2),
    Blocks(32, 32, 4, 2),
    Blocks(16, 16, 4, 2),
)
BACKWARD = (
    Blocks(64, 64, 8, 2, max_depth=128),
    Blocks(64, 32, 8, 2),
    Blocks(32, 32, 4, 2),
    Blocks(16, 16, 4, 2),
)


def depth(head_dim: int) -> int:
    """BLOCK_D: head_dim, padded to what matrix products take."""
    padded: int = triton.next_power_of_2(head_dim)
    return max(MIN_BLOCK_D, padded)


@cache
def blocks_for(device: Device, head_dim: int, dtype: torch.dtype) -> tuple[Blocks, Blocks]:
    """Blocks of the forward kernel, and of both backward kernels. Raises ValueError where none fit into the device."""

    def first_that_fits(choice: tuple[Blocks, ...], held: int) -> Blocks:
        for blocks in choice:
            needed = shared_memory(blocks, held, device.capability, head_dim, dtype)
            if needed <= device.shared_memory and depth(head_dim) <= blocks.max_depth:
                return blocks
        raise ValueError(
            f"the {device.shared_memory} bytes of shared memory of this GPU are too few "
            f"for {str(dtype).removeprefix('torch.')} at a head_dim of {head_dim}"
        )

    return first_that_fits(FORWARD, FORWARD_HOLDS), first_that_fits(BACKWARD, BACKWARD_HOLDS)


def shared_memory(blocks: Blocks, held: int, capability: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of shared memory that a kernel needs at most. held: tensors of which it holds its own rows.

    Two tensors pass by, each in as many copies as there are loads under way; scores change layout through float32.
    Tensor cores do not read float32 transposed: one tile more.
    """
    copies = blocks.stages - (capability in COPY_LESS)
    rows = held * blocks.own + (2 * copies + (dtype == torch.float32)) * blocks.passing
    return rows * depth(head_dim) * dtype.itemsize + 2 * blocks.own * blocks.passing * torch.float32.itemsize


@cache
def device_of(index: int) -> Device:
    """The GPU of this number, as Triton's driver tells of it."""
    driver = triton.runtime.driver.active
    target = driver.get_current_target()
    capability = target.arch // 10 if target.backend == "cuda" else 0  # AMD names its architectures otherwise
    return Device(driver.utils.get_device_properties(index)["max_shared_mem"], capability)
