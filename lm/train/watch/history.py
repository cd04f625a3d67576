"""The figures of a run, read as they are written."""

from __future__ import annotations

import os
import statistics
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from lm.errors import UserError
from lm.train.file_names import COMPLETE_FILE, LOCK_FILE, METRICS_FILE, RUN_FILE
from lm.train.json_lines import Record
from lm.train.log import MetricsFile
from lm.train.report.charts import Point

RECENT_STEPS = 50
SILENT_SECONDS = 60.0


class History:
    """What a run's folder holds so far; `refresh` reads on."""

    def __init__(self, root: Path) -> None:
        """Raises UserError where `root` is no run's folder; one that has not trained a step yet is one."""
        if not any((root / name).exists() for name in (METRICS_FILE, RUN_FILE, LOCK_FILE)):
            below = sorted(path.parent for path in root.glob(f"*/{METRICS_FILE}")) if root.is_dir() else []
            hint = f" Runs below it: {', '.join(map(str, below))}." if below else ""
            raise UserError(f"{root}: no run here (no {METRICS_FILE}); give the train.output_dir of one.{hint}")
        self.root = root
        self.name = root.resolve().name
        self._path = root / METRICS_FILE
        self._forget()

    def _forget(self) -> None:
        self._place = 0
        self._file: tuple[int, int] = (0, 0)
        self.series: dict[str, list[Point]] = {}
        self.newest: dict[str, Any] = {}

    def refresh(self) -> bool:
        """Reads what was written since the last call; returns whether there was anything.

        A run that resumes takes back the steps after its checkpoint: then all is read anew. Raises UserError for a
        broken line.
        """
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        changed = (found.st_dev, found.st_ino) != self._file or found.st_size < self._place
        if changed:
            self._forget()
            self._file = (found.st_dev, found.st_ino)
        if found.st_size == self._place:
            return changed
        with self._path.open("rb") as file:
            file.seek(self._place)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            record = MetricsFile.parsed(line)
            if record is None:
                if line.endswith(b"\n"):
                    MetricsFile.read(self._path)  # says which line is broken
                break
            self._place += len(line)
            self._add(record)
        return True

    def _add(self, record: Record) -> None:
        step = record["step"]
        for key, value in record.items():
            if key != "step" and (value is None or isinstance(value, int | float)):
                self.series.setdefault(key, []).append((step, value))
        self.newest |= record

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.newest.get("step", 0))

    @property
    def steps(self) -> int | None:
        """Steps of the whole run; None where its run file does not say it."""
        path = self.root / RUN_FILE
        try:
            return _steps_in(path, path.stat().st_mtime_ns)
        except OSError:
            return None

    @property
    def seconds_left(self) -> float | None:
        """By the pace of the last steps, what lies between them left out."""
        recent = [value for _, value in self.series.get("step_seconds", [])[-RECENT_STEPS:] if value is not None]
        if not recent or self.steps is None:
            return None
        return (self.steps - self.step) * statistics.median(recent)

    @property
    def state(self) -> str:
        """`waiting for the first step`, `running`, `finished`, or how long nothing has been heard."""
        if not self.newest:
            return "waiting for the first step"
        if self.steps is not None and self.step >= self.steps:
            return "finished" if (self.root / COMPLETE_FILE).exists() else "finishing"
        silence = time.time() - os.stat(self._path).st_mtime
        usual = max((value or 0.0 for _, value in self.series.get("step_seconds", [])[-RECENT_STEPS:]), default=0.0)
        return "running" if silence < max(SILENT_SECONDS, 5 * usual) else f"silent for {_long(silence)}"


@lru_cache(maxsize=1)
def _steps_in(path: Path, modified: int) -> int | None:
    """What a run file says, read once: it is asked for at every look, and takes a while to parse."""
    try:
        return int(yaml.safe_load(path.read_text(encoding="utf-8"))["train"]["steps"])
    except (ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def _long(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
