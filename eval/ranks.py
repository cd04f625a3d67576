"""The processes that share an evaluation's requests out: those of a launcher, or one alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lm.train.distributed import WAIT_FOR_RANK_ZERO, launched_rank, launched_size

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """All processes of the evaluation, seen from this one."""

    rank: int
    size: int
    _group: dist.ProcessGroup | None

    def gather(self, value: T) -> list[T]:
        """What each rank gave, in the order of ranks; every rank must call it, with anything that pickles."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values


@cache
def join() -> Ranks:
    """The ranks that a launcher such as torchrun started, each on a GPU of its own where there are GPUs."""
    rank, size = launched_rank(), launched_size()
    if size == 1:
        return Ranks(0, 1, None)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=WAIT_FOR_RANK_ZERO)
    # Python objects travel over gloo wherever the tensors are, and ranks may wait long for the slowest one.
    return Ranks(rank, size, dist.new_group(backend="gloo", timeout=WAIT_FOR_RANK_ZERO))
