"""Which implementation of an operation runs: what this machine can run, what was asked for, what is fastest."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """One implementation of an operation.

    run: the operation. unavailable: why it cannot run on this machine, None where it can.
    refuses: given the arguments of a call of `run`, why it cannot serve them, None where it can.
    """

    run: Callable[..., Any]
    unavailable: Callable[[], str | None] = lambda: None
    refuses: Callable[..., str | None] = lambda *call: None


def in_module(name: str) -> Backend:
    """A backend in a module that is first imported when it is asked for, since what it needs may be missing.

    The module holds `run`, `unavailable` and `refuses`.
    """

    @cache
    def missing() -> str | None:
        if not __name__.startswith("kernels"):
            return "it is no part of an exported model"
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            return f"{error.name} is not installed"
        return None

    def unavailable() -> str | None:
        reason: str | None = missing() or import_module(name).unavailable()
        return reason

    return Backend(
        lambda *call: import_module(name).run(*call), unavailable, lambda *call: import_module(name).refuses(*call)
    )


class Backends:
    """The backends of one operation by name, and the choice between them.

    environment: the variable that forces one. fastest: the names to try where none is asked for, by type of device;
    "gpu" stands for every device but the CPU. The last of them must serve every call.
    """

    def __init__(
        self, operation: str, environment: str, backends: Mapping[str, Backend], fastest: Mapping[str, Sequence[str]]
    ) -> None:
        self._operation, self._environment = operation, environment
        self._backends, self._fastest = dict(backends), fastest
        self._preferred: str | None = None
        self._told: set[str] = set()

    def reasons(self) -> dict[str, str]:
        """Every backend by name, with "available" or the reason why it cannot run on this machine."""
        return {name: backend.unavailable() or "available" for name, backend in self._backends.items()}

    def prefer(self, name: str | None) -> None:
        """Makes all later calls of this process that name no backend run as `name`; None chooses for each call again.

        The environment variable comes before it. Raises ValueError for a backend that does not exist or cannot run.
        """
        if name is not None:
            self._available(name)
        self._preferred = name

    def default(self, device: str) -> str:
        """The backend of calls that name none on a type of device, unless it refuses one of them."""
        able = (name for name in self._order(device) if not self._backends[name].unavailable())
        return self.named() or next(able)

    def named(self) -> str | None:
        """The backend that calls which name none are bound to, by the environment or by `prefer`; None: to none."""
        return os.environ.get(self._environment) or self._preferred

    def _order(self, device: str) -> Sequence[str]:
        return self._fastest["cpu" if device == "cpu" else "gpu"]

    def choose(self, name: str | None, device: str, *call: Any) -> Callable[..., Any]:
        """What to run for a call on a type of device. Raises ValueError where a backend was named that cannot do it."""
        name = name or self.named()
        if name is None:
            return self._choose_fastest(device, *call)
        backend = self._available(name)
        if reason := backend.refuses(*call):
            raise ValueError(f"{self._operation}: backend {name!r} cannot serve this call: {reason}")
        return backend.run

    def _available(self, name: str) -> Backend:
        if name not in self._backends:
            near = difflib.get_close_matches(name, self._backends, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{self._operation}: no backend {name!r}, there are {', '.join(self._backends)}{hint}")
        if reason := self._backends[name].unavailable():
            able = ", ".join(other for other, backend in self._backends.items() if not backend.unavailable())
            raise ValueError(f"{self._operation}: backend {name!r} cannot run here: {reason}; these can: {able}")
        return self._backends[name]

    def _choose_fastest(self, device: str, *call: Any) -> Callable[..., Any]:
        *faster, last = self._order(device)
        passed_over = []
        for name in faster:
            backend = self._backends[name]
            reason = backend.unavailable() or backend.refuses(*call)
            if reason is None:
                return backend.run
            passed_over.append(f"{name}: {reason}")
        if passed_over:
            # Plain PyTorch is what a CPU is expected to run: a hint. On a GPU it is slow, and that is told.
            level, slow = (logging.INFO, "") if device == "cpu" else (logging.WARNING, ", which is slow")
            self._tell(level, f"{self._operation} on {device} runs as {last!r}{slow} ({'; '.join(passed_over)})")
        return self._backends[last].run

    def _tell(self, level: int, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            _log.log(level, line)
