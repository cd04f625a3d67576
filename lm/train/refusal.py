"""Who says a user's mistake that one rank has met, or several: one of them, once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from lm.errors import USER_ERROR, RankError, UserError
from lm.train.watchdog import answer, id_of_attempt

FIRST_WORD_SECONDS = 2.0
"""So long other ranks leave it to rank 0 to say what it may have met, too."""


@contextmanager
def said_once() -> Iterator[None]:
    """Lets a UserError through on one rank alone; other ranks that have met the same raise SystemExit.

    That is rank 0 or, for one that rank 0 does not meet, the first other, as a RankError that names it. Before the
    ranks have joined each raises its own.
    """
    try:
        yield
    except RankError:
        raise
    except UserError as error:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            raise
        if not _mine_to_say(str(error)):
            raise SystemExit(USER_ERROR) from None
        if rank := dist.get_rank():
            raise RankError(f"rank {rank}: {error}") from error
        raise


def _mine_to_say(message: str) -> bool:
    """Whether no other rank says it. Not collective: other ranks may be anywhere. Where nobody answers, it is ours."""
    store: Any = dist.distributed_c10d._get_default_store()
    rank, key = str(dist.get_rank()), f"said/{id_of_attempt()}/{hashlib.sha256(message.encode()).hexdigest()}"

    def ask() -> str:
        until = time.monotonic() + FIRST_WORD_SECONDS
        while rank != "0" and time.monotonic() < until and not store.check([key]):
            time.sleep(0.05)
        said: bytes = store.compare_set(key, "", rank)
        return said.decode()

    return answer(ask, 2 * FIRST_WORD_SECONDS) in (None, rank)
