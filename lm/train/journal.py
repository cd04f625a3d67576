"""`guard.jsonl` in a run's folder: every decision about a spike, one a line, on the disk before it takes effect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from lm.errors import UserError
from lm.train.distributed import World
from lm.train.guard import Decision
from lm.train.json_lines import JsonLines

GUARD_FILE = "guard.jsonl"


class _GuardFile(JsonLines):
    required: ClassVar[Mapping[str, type]] = {"step": int, "action": str}
    remedy = "Delete that line; what it decided is decided anew."


class Journal:
    """The decisions of a run, of this start and of all before it."""

    def __init__(self, root: Path, world: World) -> None:
        self._path = root / GUARD_FILE
        self._world = world

    def read(self) -> list[Decision]:
        """All decisions, oldest first. Collective; raises UserError for a broken file."""
        lines = self._world.on_rank_zero(lambda: _GuardFile.read(self._path))
        return [Decision.from_json(line) for line in lines]

    def write(self, decision: Decision) -> None:
        """Appends one, and waits until it is on the disk. Collective; raises UserError where the disk fails."""

        def work() -> None:
            file = _GuardFile(self._path)
            try:
                file.append(decision.to_json())
                file.sync()
            except OSError as error:
                raise UserError(f"{self._path} cannot be written: {error.strerror}. Make room, start again.") from None
            finally:
                file.close()

        self._world.on_rank_zero(work)
