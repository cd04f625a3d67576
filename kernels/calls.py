"""Lets others look at the calls of an operation while they are made: for statistics that no caller has to know of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Calls:
    """The calls of one operation, shown to whoever wants to see them; nobody, and at no cost, unless asked for."""

    def __init__(self) -> None:
        self._watchers: list[Callable[..., None]] = []

    def __call__(self, *arguments: Any) -> None:
        """Shows the arguments of a call that is about to be made."""
        for watcher in self._watchers:
            watcher(*arguments)

    @contextmanager
    def shown_to(self, watcher: Callable[..., None]) -> Iterator[None]:
        """While it lasts, `watcher` is called with the arguments of every call."""
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._watchers.remove(watcher)
