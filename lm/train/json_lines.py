"""Append-only files of JSON objects, one a line, that survive being killed at any byte."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lm.errors import UserError

Record = Mapping[str, Any]
_WORDS = {int: "an integer", float: "a number", str: "a text"}


def plain(value: Any) -> Any:
    """`value` as strict JSON: array and tensor scalars become numbers, numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return plain(value.tolist())


class JsonLines:
    """A file of records.

    Every record is one `write` of one line, so that a reader sees whole lines or one half-written last line; opening
    the file removes that half. Floats are written so that reading them gives the same bits.
    """

    required: ClassVar[Mapping[str, type]] = {}
    """Keys that every record has, and what they hold."""
    remedy = "Delete that line."
    """What to do about a broken line."""

    def __init__(self, path: Path) -> None:
        """Opens `path` for appending and creates it where it is missing. Raises UserError for a broken line."""
        self.path = path
        _, size = self._whole(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._file.truncate(size)

    @classmethod
    def read(cls, path: Path) -> list[dict[str, Any]]:
        """All whole records, in file order; [] where there is no file.

        A last line that a killed process left half-written is no record. Raises UserError for a broken one before it.
        """
        return cls._whole(path)[0]

    def append(self, record: Record) -> None:
        """Writes one record; it is in the operating system's hands when this returns.

        Raises OSError, and leaves the file as it was, where the disk does not take it.
        """
        values = plain(record)
        if not self._complete(values):
            raise ValueError(f"a record needs {self._needs()}, got {values}")
        line = json.dumps(values, allow_nan=False).encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(self.path))
        except OSError:
            self._file.truncate(size)
            raise

    def keep(self, records: list[dict[str, Any]]) -> None:
        """Replaces what is in the file by these records, in one step."""
        temporary = self.path.with_name(self.path.name + ".tmp")
        with temporary.open("wb") as file:
            file.writelines(json.dumps(record).encode() + b"\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
        self._file.close()
        temporary.replace(self.path)
        self._file = self.path.open("ab", buffering=0)

    def sync(self) -> None:
        """Forces what was appended to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    @classmethod
    def _whole(cls, path: Path) -> tuple[list[dict[str, Any]], int]:
        """The whole records and the number of bytes of the file that hold them."""
        if not path.exists():
            return [], 0
        records: list[dict[str, Any]] = []
        size = 0
        lines = path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            record = cls.parsed(line)
            if record is None and number == len(lines):
                break
            if record is None:
                raise UserError(
                    f"{path}: line {number} is not a record (a JSON object with {cls._needs()}). {cls.remedy}"
                )
            records.append(record)
            size += len(line)
        return records, size

    @classmethod
    def parsed(cls, line: bytes) -> dict[str, Any] | None:
        """The record of a line with its end; None where it is none, or only half of one."""
        try:
            record = json.loads(line)
        except ValueError:
            return None
        return record if line.endswith(b"\n") and cls._complete(record) else None

    @classmethod
    def _complete(cls, record: Any) -> bool:
        return isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in cls.required.items())

    @classmethod
    def _needs(cls) -> str:
        return " and ".join(f"{_WORDS[kind]} '{key}'" for key, kind in cls.required.items())
