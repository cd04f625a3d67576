"""One process, or one group of ranks, at a time in an output folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lm.data.cache import without_locks
from lm.errors import UserError
from lm.train.distributed import World
from lm.train.file_names import LOCK_FILE


@contextmanager
def claimed(root: Path, world: World, key: str, work: str) -> Iterator[None]:
    """Makes the folder where it is missing, and holds it. Collective.

    key: the option that names the folder; work: what is done in it (`training`). Raises UserError if another process
    has it or it cannot be written.
    """
    handles: list[int] = []
    try:
        world.on_rank_zero(lambda: handles.append(_lock(root, key, work)))
        yield
    finally:
        for handle in handles:
            os.close(handle)  # and with it the lock, as when the process is killed


@contextmanager
def claimed_alone(root: Path, key: str, work: str) -> Iterator[None]:
    """The same for one process, whether others train with it or not."""
    handle = _lock(root, key, work)
    try:
        yield
    finally:
        os.close(handle)


def _lock(root: Path, key: str, work: str) -> int:
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{key}: {root} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if not isinstance(error, BlockingIOError):
            raise without_locks(root, key, error) from None
        raise UserError(f"{key}: another process is {work} in {root}. Wait for it, or choose another folder.") from None
    return handle
