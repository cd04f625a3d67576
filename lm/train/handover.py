"""Work in small pieces that a thread does beside training, until somebody has to wait for it and does the rest."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

T = TypeVar("T")
NICENESS = 19


class Handover(Generic[T]):
    """Work that is under way. `T`: what it returns when it is done."""

    def __init__(self, pieces: Generator[None, None, T], thread: Executor | None) -> None:
        """`thread`: begins at once; None leaves all of the work to who asks for the result."""
        self._pieces = pieces
        self._waited_for = threading.Event()
        self._job: Future[list[T]] | None = None if thread is None else thread.submit(self._until_waited_for)

    def done(self) -> bool:
        """Whether the thread has come to its end, or failed."""
        return self._job is not None and self._job.done()

    def result(self, pulse: Callable[[], None] = lambda: None) -> T:
        """What the work returns; does what is left of it here. Raises what the work raises.

        pulse: called at every piece that is done here.
        """
        self._waited_for.set()
        results = [] if self._job is None else self._job.result()
        return results[0] if results else ended(self._pieces, pulse)

    def _until_waited_for(self) -> list[T]:
        """The result; none where somebody came to wait for it."""
        give_way()
        while not self._waited_for.is_set():
            try:
                next(self._pieces)
            except StopIteration as end:
                return [end.value]
        return []


def ended(pieces: Generator[None, None, T], pulse: Callable[[], None] = lambda: None) -> T:
    """What work returns when it is done, all of it here. pulse: called at every piece."""
    while True:
        pulse()
        try:
            next(pieces)
        except StopIteration as end:
            result: T = end.value
            return result


def give_way() -> None:
    """Lets the calling thread run where others leave a processor idle, and else for next to nothing, from now on.

    A step's threads wait for each other many times a step, so that one more thread that takes a processor from them
    holds up all: on two cores a step took five times as long. On Linux alone a thread has a priority of its own.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
