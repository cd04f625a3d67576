"""Stopping on request: what was begun is finished, a checkpoint is written, and the program ends with 0."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from kernels.linear_cross_entropy import CrossEntropy
from lm.train.distributed import World
from lm.train.evaluate import Evaluated
from lm.train.launcher import Launcher
from lm.train.sharing import MicroBatch

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; what launchers and schedulers send before they kill; what `sbatch --signal` is usually told to send."""
SAME_REQUEST_SECONDS = 1.0
"""A launcher hands on the signal that the terminal has sent to every rank already: one request that arrives twice."""


class Stopped(Exception):  # noqa: N818 - it is no error
    """All ranks have agreed to stop where they are."""


class StopRequest:
    """Notes SIGINT, SIGTERM and SIGUSR1 while it is entered, instead of dying of them, and the end of the launcher.

    A second Ctrl-C is an impatient person and quits at once. Other signals may come again: launchers hand them on at
    times of their own, and who will not wait sends SIGKILL.
    """

    def __init__(self, world: World, launcher: Launcher | None = None) -> None:
        """launcher: as it was when the program began; without it, as it is now."""
        self._world = world
        self._first: tuple[int, float] | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._launcher = launcher or Launcher()
        self._at_once = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # nowhere else may handlers be set
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> signal.Signals | None:
        """The signal that any rank was sent, the same answer on all. Collective.

        A launcher that ended without a word, as deepspeed's does on SIGTERM, counts as a SIGTERM.
        """
        if self._first is None and self._launcher.gone():
            self._first = (signal.SIGTERM, time.monotonic())
        mine = self.noted
        sent = self._world.sum(torch.tensor([float(number == mine) for number in SIGNALS])).tolist()
        return next((number for number, count in zip(SIGNALS, sent, strict=True) if count), None)

    def raise_if_agreed(self) -> None:
        """Raises Stopped, on all ranks or none, if any was sent a signal. Collective."""
        if self.agreed():
            raise Stopped

    @property
    def noted(self) -> signal.Signals | None:
        """The signal that this rank was sent."""
        return signal.Signals(self._first[0]) if self._first else None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Work of this rank alone that may be left anywhere: a signal raises Stopped in it."""
        if self._first is not None:
            raise Stopped
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (number, now)
            if self._at_once:
                raise Stopped
        elif number == signal.SIGINT == self._first[0] and now - self._first[1] > SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@dataclass(frozen=True)
class Interruptible:
    """A model under evaluation that all ranks leave together, by Stopped, when one of them is to stop.

    pulse: called at every forward.
    """

    model: Evaluated
    request: StopRequest
    pulse: Callable[[], None]

    @property
    def world(self) -> World:
        return self.model.world

    def eval(self) -> None:
        self.model.eval()

    def forward(self, batch: MicroBatch) -> CrossEntropy:
        """The summed loss, and what it was for each target [N]. Raises Stopped."""
        self.pulse()
        self.request.raise_if_agreed()
        return self.model.forward(batch)
