"""Files opened for reading, compressed (.gz, .zst) or not."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow

_COMPRESSIBLE = (".txt", ".md", ".py", ".json", ".jsonl")
_BUFFER = 1 << 16
DAMAGE = (EOFError, OSError, zlib.error)
"""What is raised where a file is cut short or damaged."""


class CannotOpenError(Exception):
    """A file that is not there, or not for this user."""


def kind_of(path: Path) -> str:
    """What a file holds by its name: `.jsonl` for a.jsonl and a.jsonl.zst; a suffix that says nothing stays."""
    suffix = path.suffix.lower()
    inner = path.with_suffix("").suffix.lower()
    return inner if suffix in _OPENERS and inner in _COMPRESSIBLE else suffix


def is_compressed(path: Path) -> bool:
    """Whether its bytes are not those of its content."""
    return path.suffix.lower() in _OPENERS


def open_bytes(path: Path) -> BinaryIO:
    """The content of a file. One that is cut short gives all that can be told of it, then raises one of DAMAGE.

    Raises:
        CannotOpenError: in the system's words.
    """
    try:
        return _OPENERS.get(path.suffix.lower(), _plain)(path)
    except OSError as error:
        raise CannotOpenError(error.strerror or str(error)) from None


def _plain(path: Path) -> BinaryIO:
    return path.open("rb", buffering=1 << 20)


class _Zstandard(io.RawIOBase):
    """pyarrow's decompression. What it drops when the end is missing is found again by asking for less."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = self._opened()
        self._given = 0
        self._error: OSError | None = None

    def _opened(self) -> Any:
        return pyarrow.CompressedInputStream(pyarrow.OSFile(str(self._path)), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._error is not None:
            raise self._error
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            self._error = error
            data = self._salvaged(len(buffer))
            if not data:
                raise
        self._given += len(data)
        buffer[: len(data)] = data
        return len(data)

    def _salvaged(self, wanted: int) -> bytes:
        good, bad = b"", wanted
        while bad - len(good) > 1:
            less = (len(good) + bad) // 2
            stream = self._opened()
            try:
                for _ in range(self._given // _BUFFER):
                    stream.read(_BUFFER)
                stream.read(self._given % _BUFFER)
                good = stream.read(less)
            except OSError:
                bad = less
        return good


_OPENERS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": lambda path: cast(BinaryIO, gzip.GzipFile(path)),
    ".zst": lambda path: cast(BinaryIO, io.BufferedReader(_Zstandard(path), _BUFFER)),
}
