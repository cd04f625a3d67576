"""Running Triton kernels on a GPU, or in the interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
import triton
import triton.language as tl

# Triton decides it when a kernel is defined, so that it holds for all of a process.
INTERPRETED: bool = triton.knobs.runtime.interpret

_TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


class Tuned:
    """A kernel whose block sizes are the fastest of `configs`, measured once for each value of the `key` arguments.

    Only for kernels whose results do not depend on them: another process may measure otherwise.
    interpreted: the block sizes in the interpreter, where nothing can be measured.
    """

    def __init__(
        self, kernel: Any, configs: Sequence[triton.Config], key: Sequence[str], interpreted: Mapping[str, int]
    ) -> None:
        self.kernel, self.configs, self.interpreted = kernel, list(configs), dict(interpreted)
        self._key = list(key)

    def __call__(self, grid: Any, *arguments: Any, **constants: Any) -> None:
        """grid: what Triton takes, called with the block sizes."""
        if INTERPRETED:
            self.kernel[grid](*arguments, **constants, **self.interpreted)
        else:
            self._autotuner[grid](*arguments, **constants)

    @cached_property
    def _autotuner(self) -> Any:
        return triton.autotune(self.configs, self._key)(self.kernel)


def config(num_warps: int, num_stages: int, **blocks: int) -> triton.Config:
    return triton.Config(blocks, num_warps=num_warps, num_stages=num_stages)


def unavailable() -> str | None:
    """Why Triton kernels cannot run on this machine, None where they can."""
    if INTERPRETED or torch.cuda.is_available():
        return None
    return "there is no GPU (TRITON_INTERPRET=1 runs it on a CPU, to check it)"


def refuses_device(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on tensors of this device, None where they can."""
    needed = "cpu" if INTERPRETED else "cuda"
    return None if device.type == needed else f"it runs on {needed} here, the tensors are on {device.type}"


def triton_type(dtype: torch.dtype) -> tl.dtype:
    return _TYPES[dtype]


def operand_type(dtype: torch.dtype) -> tl.dtype:
    """The type of matrix products' operands: that of the tensors, since tensor cores sum in float32 anyway."""
    if INTERPRETED and dtype == torch.bfloat16:
        return tl.float32  # the interpreter multiplies the bits of bfloat16 as integers
    return _TYPES[dtype]


def product_precision() -> str:
    """How matrix products of float32 are to be made: as PyTorch is told to make its own."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
