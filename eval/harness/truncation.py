"""Prompts that are longer than a model's context: which of their tokens are left out, and how many there were."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Side = Literal["left", "middle"]

_log = logging.getLogger(__name__)


@dataclass
class Truncation:
    """Shortens prompts and remembers which.

    side: `left` leaves out the beginning; `middle` keeps the first and the last half of what fits, as LongBench does.
    bos: a token that stays in front where a prompt begins with it.
    shortened: the number of each prompt that was.
    """

    side: Side
    bos: int | None
    shortened: set[int] = field(default_factory=set)

    def fit(self, ids: Sequence[int], room: int) -> list[int]:
        """The ids, or `room` >= 1 of them."""
        lost = len(ids) - room
        if lost <= 0:
            return list(ids)
        self.shortened.add(self.number(ids))
        front = room // 2 if self.side == "middle" else 0
        if ids[0] == self.bos:
            front = max(front, 1)
        return [*ids[:front], *ids[front + lost :]]

    @staticmethod
    def number(ids: Sequence[int]) -> int:
        """Names a prompt, by the same number in every process."""
        return hash(tuple(ids))

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Warns at its end of the prompts that were shortened meanwhile."""
        before = len(self.shortened)
        yield
        if found := len(self.shortened) - before:
            lost = {"left": "beginning", "middle": "middle"}[self.side]
            _log.warning("prompts that are longer than the model's context and lost their %s: %d", lost, found)
