"""Compiles every launch of the Triton kernels for a GPU, without one: the launches are those of the backends.

Arguments: the compute capability, such as 90; then `scan`, or dtypes and head_dims of attention, such as bfloat16:64;
tf32 is float32 on tensor cores.
Prints the name of each kernel that compiles. Those of attention must need no more shared memory than their blocks were
taken to need, which is no more than the GPU has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernels.gated_scan import Chunks, triton_scan
from kernels.interval_attention import Intervals, triton_attention, triton_blocks
from kernels.triton_tuning import Tuned

TOKENS, HEADS, KV_HEADS = 40, 4, 2
# CUDA C++ programming guide, "technical specifications per compute capability": bytes that one block may use.
SHARED_MEMORY = {75: 65536, 80: 166912, 86: 101376, 89: 101376, 90: 232448, 120: 101376}
launch = JITFunction.run
estimates: dict[str, int] = {}


class Driver:
    """What compiler and autotuner ask of a GPU's driver."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        properties = {"max_shared_mem": SHARED_MEMORY[capability]}
        self.utils = SimpleNamespace(get_device_properties=lambda device: properties)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_benchmarker(self) -> Callable[..., list[float]]:
        def measure(call: Callable[[], None], quantiles: list[float]) -> list[float]:
            call()
            return [1.0] * len(quantiles)

        return measure


def compile_only(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
    assert all(size > 0 for size in (grid(options) if callable(grid) else grid))
    compiled = launch(self, *arguments, grid=grid, warmup=True, **options)
    assert compiled.asm["cubin"]
    used, estimate = compiled.metadata.shared, estimates.get(self.__name__, SHARED_MEMORY[int(sys.argv[1])])
    assert used <= estimate, f"{self.__name__} needs {used} bytes of shared memory, not {estimate}"
    print(self.__name__)


def estimate_shared_memory(dtype: torch.dtype, head_dim: int) -> dict[str, int]:
    """Of each kernel of attention; within what the GPU has, or no blocks would be found."""
    device = triton_blocks.device_of(0)
    forward, backward = triton_blocks.blocks_for(device, head_dim, dtype)

    def needs(blocks: triton_blocks.Blocks, held: int) -> int:
        return triton_blocks.shared_memory(blocks, held, device.capability, head_dim, dtype)

    back = needs(backward, triton_blocks.BACKWARD_HOLDS)
    return {
        "forward_kernel": needs(forward, triton_blocks.FORWARD_HOLDS),
        "queries_kernel": back,
        "keys_kernel": back,
    }


def attention(dtype: torch.dtype, head_dim: int) -> None:
    token = torch.arange(TOKENS)
    intervals = Intervals(torch.zeros_like(token)[None], token + 1, (KV_HEADS,))
    wide, narrow = (TOKENS, HEADS, head_dim), (TOKENS, KV_HEADS, head_dim)
    shapes = [wide, narrow, narrow, wide[:2], wide]
    estimates.update(estimate_shared_memory(dtype, head_dim))
    # The extra entry takes what registers there are; in float32, which takes long to compile, it is left out.
    tensors = [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    extra = [None, None] if dtype == torch.float32 else tensors[3:]
    out, _ = triton_attention.run(*tensors[:3], intervals, 0.5, *extra)
    out.sum().backward()


def scan(lengths: list[int]) -> None:
    chunks = Chunks(torch.tensor([0, *lengths]).cumsum(0))
    gate, value = torch.zeros(2, sum(lengths), 2, 8, requires_grad=True).unbind(0)
    shared = torch.zeros(sum(lengths), 1, 8, dtype=torch.bfloat16, requires_grad=True).expand(-1, 2, -1)
    sum(state.sum() for state in triton_scan.run(gate, [shared, value], chunks)).backward()


def limit_configs(module: Any, count: int) -> None:
    for tuned in vars(module).values():
        if isinstance(tuned, Tuned):
            tuned.configs = tuned.configs[:count]


if __name__ == "__main__":
    triton.runtime.driver.set_active(Driver(int(sys.argv[1])))
    JITFunction.run = compile_only
    limit_configs(triton_scan, 2)
    for asked in sys.argv[2:]:
        if asked == "scan":
            scan([16, 16])
            scan([300, 3])
        else:
            dtype, head_dim = asked.split(":")
            torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
            attention(getattr(torch, dtype.replace("tf32", "float32")), int(head_dim))
