"""Work between steps: what is due after a step, and what it adds to the step's record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from lm.train.evaluate import Evaluated
from lm.train.hook import Hook
from lm.train.interrupt import Stopped
from lm.train.progress import Progress


class Periodic(Protocol):
    """Work that the loop does after some steps, on all ranks. A training lists its own in `Training.periodic`."""

    def due(self, step: int) -> bool:
        """Whether it is to be done when `step` steps are done; the same answer on all ranks."""

    def __call__(self, step: int) -> Mapping[str, Any]:
        """Does it; what it found goes into the step's record. Collective; leaves weights and random numbers alone."""


def at_interval(step: int, every: int | None, steps: int) -> bool:
    """Whether a step ends an interval of `every` steps (None: there are none) or the run of `steps`."""
    return step == steps or (every is not None and step % every == 0)


def findings(periodic: Iterable[Periodic], step: int, pulse: Callable[[int], None]) -> dict[str, Any] | None:
    """What all work found that is due after a step; None where it was left because the run is to stop.

    pulse: called before each, with the step.
    """
    found: dict[str, Any] = {}
    try:
        for work in periodic:
            if work.due(step):
                pulse(step)
                found |= work(step)
    except Stopped:
        return None  # all of it is done again
    return found


class HookCalls:
    """Calls a hook at its own interval, and at the end of a run of `steps`."""

    def __init__(self, hook: Hook, engine: Evaluated, progress: Progress, steps: int) -> None:
        self._hook = hook
        self._engine = engine
        self._progress = progress
        self._steps = steps

    def due(self, step: int) -> bool:
        return at_interval(step, self._hook.every, self._steps)

    def __call__(self, step: int) -> Mapping[str, Any]:
        with self._progress.phase(self._hook.title):
            return self._hook(self._engine)
