"""Reads the next batch while the one before is worked on, for whoever asks in a regular way.

Training asks for a few batches in a row, jumps to the next step, and begins again. Which rows come next follows from
what was asked so far, so nobody has to say it; a guess that is wrong costs a read that nobody waits for.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

ReadT = TypeVar("ReadT")
Indices = tuple[int, ...]
_CONVINCED = 2
"""Guesses that come true before anything is read on one."""


class ReadAhead(Generic[ReadT]):
    """`read(indices)`, called in a thread beforehand where the indices could be guessed."""

    def __init__(self, read: Callable[[Indices], ReadT]) -> None:
        self._read = read
        self._asked: Indices = ()
        self._guess: Indices = ()
        self._right = 0
        self._run = 0  # calls in a row since the last jump
        self._last_run: int | None = None
        self._last_jump = 0
        self._threads: ThreadPoolExecutor | None = None
        self._coming: Future[ReadT] | None = None

    def __call__(self, indices: Indices) -> ReadT:
        """What `read` gives for these indices, or raises."""
        coming, self._coming = self._coming, None
        guessed = indices == self._guess
        self._right = self._right + 1 if guessed else 0
        found = coming.result() if guessed and coming is not None else self._read(indices)
        self._learn(indices)
        if self._right >= _CONVINCED:
            self._threads = self._threads or ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
            self._coming = self._threads.submit(self._read, self._guess)
        return found

    def _learn(self, indices: Indices) -> None:
        if self._asked and indices:
            if indices[0] == self._asked[-1] + 1:
                self._run += 1
            else:
                self._last_run, self._last_jump = self._run, indices[0] - self._asked[0]
                self._run = 0
        self._asked = indices
        if not indices:
            self._guess = ()
            return
        jump = self._last_jump if self._last_run is not None and self._run >= self._last_run else len(indices)
        self._guess = tuple(index + jump for index in indices)
