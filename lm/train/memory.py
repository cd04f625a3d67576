"""The memory of a process: the most that it has held, and what becomes of what it frees."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lm.errors import UserError, first_line

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def peak_memory(device: torch.device) -> int:
    """Bytes at the highest so far: tensors on a GPU, everything of this process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def saying_that_memory_is_full() -> Iterator[None]:
    """Makes a UserError, with what helps, of a GPU's memory that does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{first_line(error)}\n"
            "What helps, in this order: a lower train.micro_batch_size, train.activation_checkpointing, "
            "deepspeed.zero_stage 1, 2 or 3, offload. braid plan --world-size N says what a rank needs."
        ) from error


def keep_freed_memory(keep: bool = True) -> bool:
    """Has the C library keep the memory that large tensors leave, for the next ones. Returns whether it does as told.

    Left alone, glibc gives every block of more than 32 MiB back at once, and the system clears each page of the next:
    on a CPU that takes longer than adding two tensors of that size. A process that keeps it holds its peak until it
    ends, and that may be somewhat higher, since blocks of other sizes are not joined at once.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    blocks, trim = (0, -1) if keep else (65536, 128 << 10)  # the second are glibc's own
    return all([library.mallopt(_M_MMAP_MAX, blocks), library.mallopt(_M_TRIM_THRESHOLD, trim)])


def release_freed_memory() -> None:
    """Gives back to the system what the C library keeps of freed tensors, where it is one that can."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
