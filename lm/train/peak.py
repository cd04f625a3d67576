"""The peak a device could reach, against which model FLOPs utilisation is told."""

from __future__ import annotations

import os
import re
import time

import torch

from lm.train.distributed import World

MEASURING_SECONDS = 0.25
CPU_SIZE, GPU_SIZE = 512, 4096

# Dense bf16 tensor-core FLOP/s (fp32 accumulation) of the vendors' data sheets; sheets that print the sparse figure
# are halved. The first pattern that the device's name contains counts.
BF16_PEAKS: tuple[tuple[str, float], ...] = (
    (r"\bB200\b", 2250e12),
    (r"\bH200 NVL\b", 835e12),
    (r"\b(H200|GH200)\b", 989e12),
    (r"\bH100 PCIe\b", 756e12),
    (r"\bH100 NVL\b", 835e12),
    (r"\bH100\b", 989e12),
    (r"\b(A100|A800)\b", 312e12),
    (r"\bA30\b", 165e12),
    (r"\bL40S\b", 362e12),
    (r"\bL40\b", 181e12),
    (r"\bL4\b", 121e12),
    (r"\bRTX 4090\b", 165e12),
    (r"\bRTX 3090\b", 71e12),
    (r"\bMI300X\b", 1307e12),
)


def device_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of `device`, or of this rank's share of the CPU, for matrix products in `dtype`.

    Data-sheet figures for bf16 on GPUs of the table; everything else is measured once (under half a second).
    """
    if device.type == "cuda":
        listed = data_sheet_peak(torch.cuda.get_device_name(device)) if dtype == torch.bfloat16 else None
        return _measure(device, dtype, GPU_SIZE) if listed is None else listed
    threads = min(torch.get_num_threads(), max(1, _cores() // _ranks_of_this_machine()))
    return threads * _measure_one_thread(dtype)


def peak_of_all(world: World, dtype: torch.dtype) -> float:
    """FLOP/s of the devices of all ranks together. Collective."""
    world.barrier()  # so that ranks which share a processor measure their share of it
    return float(world.sum(torch.tensor(device_peak(world.device, dtype))))


def data_sheet_peak(name: str) -> float | None:
    """Dense bf16 FLOP/s of the GPU that PyTorch calls `name`; None if the table has none (MIG slices included)."""
    if "MIG" in name:
        return None
    return next((flops for pattern, flops in BF16_PEAKS if re.search(pattern, name)), None)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ranks_of_this_machine() -> int:
    """As torchrun and the deepspeed launcher tell it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)


def _measure_one_thread(dtype: torch.dtype) -> float:
    # Threads wait for each other, so on a busy machine several together show the machine's load and not its peak.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(torch.device("cpu"), dtype, CPU_SIZE)
    finally:
        torch.set_num_threads(threads)


def _measure(device: torch.device, dtype: torch.dtype, size: int) -> float:
    a, b = torch.ones((2, size, size), device=device, dtype=dtype)
    out = torch.empty_like(a)
    best = float("inf")
    begin = time.perf_counter()
    # The fastest of several: the first ones pay for warming up, and other processes only ever slow one down.
    while time.perf_counter() - begin < MEASURING_SECONDS:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
