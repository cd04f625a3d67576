"""Stopping on request: the first signal lets the step end and a checkpoint be written, the second quits at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from lm.train.distributed import World

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_REQUEST_SECONDS = 1.0
"""A launcher hands on the signal that the terminal has sent to every rank already: one request that arrives twice."""


class StopRequest:
    """Notes SIGINT and SIGTERM while it is entered, instead of dying of them."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # nowhere else may handlers be set
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self, world: World) -> signal.Signals | None:
        """The signal that any rank was sent, the same answer on all. Collective."""
        mine = self._first[0] if self._first else None
        sent = world.sum(torch.tensor([float(number == mine) for number in SIGNALS])).tolist()
        return next((number for number, count in zip(SIGNALS, sent, strict=True) if count), None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (number, now)
        elif now - self._first[1] > SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
