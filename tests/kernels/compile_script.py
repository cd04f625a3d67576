"""Compiles every launch of the Triton kernels for an H100, without one: the launches are those of the backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernels.gated_scan import Chunks, triton_scan
from kernels.interval_attention import Intervals, triton_attention
from kernels.triton_tuning import Tuned

TOKENS, HEADS, KV_HEADS, HEAD_DIM = 40, 4, 2, 16
launch = JITFunction.run


class Driver:
    """What compiler and autotuner ask of a GPU's driver."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

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
    assert all(size > 0 for size in grid(options))
    compiled = launch(self, *arguments, grid=grid, warmup=True, **options)
    assert compiled.asm["cubin"]
    print(self.__name__)


def attention(dtype: torch.dtype, extras: int) -> None:
    token = torch.arange(TOKENS)
    intervals = Intervals(torch.zeros_like(token)[None], token + 1, (KV_HEADS,))
    wide, narrow = (TOKENS, HEADS, HEAD_DIM), (TOKENS, KV_HEADS, HEAD_DIM)
    shapes = [wide, narrow, narrow, wide[:2], wide][: 3 + extras]
    tensors = [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    out, _ = triton_attention.run(*tensors[:3], intervals, 0.5, *[*tensors[3:], None, None][:2])
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
    triton.runtime.driver.set_active(Driver())
    JITFunction.run = compile_only
    limit_configs(triton_attention, 1)
    limit_configs(triton_scan, 2)
    attention(torch.bfloat16, 2)
    attention(torch.float32, 0)
    scan([16, 16])
    scan([300, 3])
