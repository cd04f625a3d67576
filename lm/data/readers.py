"""Readers of the file kinds: each walks one file and yields its documents, and what it could not read.

A new kind is one function and one line in `READERS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet

from lm.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Document:
    """One non-empty text, and the same as UTF-8."""

    text: str
    utf8: bytes


@dataclass(frozen=True)
class Unreadable:
    """What could not be read, where, and why."""

    path: Path
    where: str
    reason: str

    def __str__(self) -> str:
        return f"'{self.path}' cannot be read at {self.where}: {self.reason}"


Reader = Callable[[Path, str, str], Iterator[Document | Unreadable]]


def read_text(path: Path, text_field: str, key: str) -> Iterator[Document | Unreadable]:
    """A whole file as one document, line ends untouched."""
    try:
        utf8 = path.read_bytes()
        if utf8:
            yield Document(utf8.decode(), utf8)
    except OSError as error:
        yield Unreadable(path, "its opening", str(error.strerror))
    except UnicodeDecodeError as error:
        yield Unreadable(path, f"byte {error.start}", "not UTF-8 text")


def read_jsonl(path: Path, text_field: str, key: str) -> Iterator[Document | Unreadable]:
    """One JSON object per line; blank lines are ignored."""
    try:
        with path.open("rb") as lines:
            start = 0
            for number, line in enumerate(lines, 1):
                where = f"line {number} (byte {start})"
                start += len(line)
                if not line.strip():
                    continue
                try:
                    record = json.loads(line.decode())
                except UnicodeDecodeError as error:
                    yield Unreadable(path, f"line {number} (byte {start - len(line) + error.start})", "not UTF-8 text")
                    continue
                except ValueError as error:
                    yield Unreadable(path, where, f"not JSON ({error})")
                    continue
                if not isinstance(record, dict):
                    yield Unreadable(path, where, "not a JSON object")
                    continue
                if text_field not in record:
                    raise _missing_field(path, f"line {number}", text_field, list(record), key)
                yield from _document(record[text_field], path, where)
    except OSError as error:
        yield Unreadable(path, "its opening", str(error.strerror))


def read_parquet(path: Path, text_field: str, key: str) -> Iterator[Document | Unreadable]:
    """The text column of a parquet file, a few rows in memory at a time."""
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            if text_field not in table.schema_arrow.names:
                raise _missing_field(path, "its schema", text_field, table.schema_arrow.names, key)
            for batch in table.iter_batches(batch_size=256, columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield from _document(value, path, f"row {row}")
    except (OSError, pyarrow.ArrowException) as error:
        yield Unreadable(path, f"row {row + 1}", f"not a whole parquet file ({str(error).splitlines()[0]})")


def _document(value: object, path: Path, where: str) -> Iterator[Document | Unreadable]:
    if not isinstance(value, str):
        yield Unreadable(path, where, f"the text field holds {type(value).__name__}, not text")
        return
    try:
        if value:
            yield Document(value, value.encode())
    except UnicodeEncodeError as error:
        yield Unreadable(path, where, f"half of a surrogate pair at character {error.start}")


def _missing_field(path: Path, where: str, text_field: str, fields: list[str], key: str) -> UserError:
    return UserError(
        f"{key}.text_field: '{path}' has no field '{text_field}' in {where}; "
        f"it has {', '.join(fields) or 'none'}.{did_you_mean(text_field, fields)}"
    )


READERS: dict[str, Reader] = {
    ".txt": read_text,
    ".md": read_text,
    ".py": read_text,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
