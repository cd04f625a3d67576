"""The ranks of a run: how they find each other, and the few things that they say to each other."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from kernels.exchange import Ranks
from lm.errors import RankError, UserError
from lm.model.shares import SequenceGroup

T = TypeVar("T")

WAIT_FOR_RANK_ZERO = timedelta(days=1)
"""Preparing a large corpus happens on rank 0 alone and must not run into the timeout of ordinary collectives."""


def launched_rank() -> int:
    """This process's rank as a launcher announced it; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def launched_size() -> int:
    """How many ranks the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class World:
    """All ranks of the run, seen from this one. Every method is collective.

    sequence: the ranks that share their rows with this one, where sequences are held by several.
    """

    rank: int
    size: int
    device: torch.device
    _patient: dist.ProcessGroup | None
    sequence: SequenceGroup | None = None

    @property
    def readers(self) -> int:
        """How many ranks, or groups of ranks that share their rows, read different rows."""
        return self.size if self.sequence is None else self.size // self.sequence.ranks.size

    @property
    def reader(self) -> int:
        """Which of them this rank is, or belongs to."""
        return self.rank if self.sequence is None else self.rank // self.sequence.ranks.size

    def sharing_sequences(self, ranks: int, lengths: Sequence[int], dtype: torch.dtype) -> World:
        """The same world where every `ranks` neighbouring ranks, a divisor of all, hold the same rows together.

        lengths, dtype: see `SequenceGroup`.
        """
        if ranks == 1:
            return self
        members = [list(range(first, first + ranks)) for first in range(0, self.size, ranks)]
        groups = [dist.new_group(group) for group in members]
        own = Ranks(groups[self.rank // ranks], self.rank % ranks, ranks)
        return replace(self, sequence=SequenceGroup(own, tuple(lengths), dtype))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in float64, on the CPU: it has been waited for."""
        total = values.to(self.device, torch.float64, copy=True)
        dist.all_reduce(total)
        return total.cpu()

    def sum_once(self, values: torch.Tensor) -> torch.Tensor:
        """The same of what ranks that share their rows all know: it counts once for each row."""
        counts = self.sequence is None or self.sequence.ranks.rank == 0
        return self.sum(values if counts else torch.zeros_like(values))

    def gather(self, value: T) -> list[T]:
        """What each rank gave, in the order of ranks, however long the slowest takes."""
        if self.size == 1:  # gloo's threads, which forget late what was sent, abort a process that ends at once
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._patient)
        return values

    def barrier(self) -> None:
        """Waits until every rank is here."""
        dist.barrier()

    def agree(self, work: Callable[[], T]) -> T:
        """What `work`, which must not be collective, returns on this rank, however long it takes on any.

        Raises UserError on every rank where `work` raised it on any; it names the rank where rank 0 did not.
        """
        outcome, refused = _attempt(work)
        for rank, message in enumerate(self.gather(refused)):
            if message is not None:
                raise UserError(f"rank {rank}: {message}" if rank else message)
        result: T = outcome
        return result

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, for every rank, however long it takes.

        Raises UserError on every rank where `work` raised it on rank 0.
        """
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            outcome = [*_attempt(work)]
        dist.broadcast_object_list(outcome, src=0, group=self._patient)
        if outcome[1] is not None:
            raise UserError(outcome[1])
        result: T = outcome[0]
        return result


def _attempt(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """What `work` returns, and the message of a UserError that it raises instead."""
    try:
        return work(), None
    except UserError as error:
        return None, str(error)


def start() -> World:
    """Joins the ranks, as `join` does, and makes DeepSpeed ready for them.

    Sets what DeepSpeed reads when it is first imported, so nothing may import it before.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    world = join()
    _start_deepspeed()
    return world


def join() -> World:
    """Joins the ranks of the launcher (torchrun or deepspeed), or makes a world of one without a launcher.

    Raises UserError where the machine has GPUs, but fewer than ranks.
    """
    on_gpu = torch.cuda.is_available()
    rank, size = launched_rank(), launched_size()
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    if on_gpu and local_rank >= gpus:
        kind = RankError if local_rank == gpus else UserError  # the first of them says it; rank 0 has its GPU
        raise kind(
            f"rank {rank}: its machine has {gpus} GPUs, too few for its number {local_rank + 1} there: start at most "
            "one rank for each GPU (--nproc_per_node, --num_gpus)"
        )
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    _quiet()
    if not dist.is_initialized():
        if on_gpu:
            torch.cuda.set_device(device)
        # A world of one needs no port, so two runs on one machine cannot collide.
        store = dist.HashStore() if size == 1 else None  # type: ignore[attr-defined]
        dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size)
    if size == 1:
        leave_at_exit()  # nobody to wait for, and threads left behind could abort the interpreter on its way out
    return World(rank, size, device, dist.new_group(backend="gloo", timeout=WAIT_FOR_RANK_ZERO))


@cache
def leave_at_exit() -> None:
    """Takes leave of the other ranks when the process ends; to be called where all of them have come to an end.

    A rank that fails must not wait for the others on its way out, so this is not done from the start.
    """
    atexit.register(_leave)


def _leave() -> None:
    dist.destroy_process_group()
    gc.collect()  # threads of a group end with the last that refers to it, and one that outlives Python aborts it


def _quiet() -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    for module in ("torch", "deepspeed"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
        warnings.filterwarnings("ignore", category=UserWarning, module=module)


def _start_deepspeed() -> None:
    import deepspeed
    import deepspeed.ops
    import deepspeed.runtime.bf16_optimizer

    # Otherwise a CPU start compiles this operation, which training never calls, for minutes and without a word.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It prints the memory's state, unasked, a dozen times at each start.
    deepspeed.runtime.bf16_optimizer.see_memory_usage = lambda *_, **__: None
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.init_distributed(verbose=False)
