"""Readers of the file kinds: each walks one file and yields its documents, and what it could not read.

A kind holds a text (`TEXTS`) or records of named fields (`RECORDS`); a new one is a function and a line there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Record:
    """Named values, and where they stand."""

    path: Path
    where: str
    values: dict[str, Any]


def read_text(path: Path) -> Iterator[Document | Unreadable]:
    """A whole file as one document, line ends untouched."""
    try:
        utf8 = path.read_bytes()
        if utf8:
            yield Document(utf8.decode(), utf8)
    except OSError as error:
        yield Unreadable(path, "its opening", str(error.strerror))
    except UnicodeDecodeError as error:
        yield Unreadable(path, f"byte {error.start}", "not UTF-8 text")


def read_jsonl(path: Path, field: str | None = None) -> Iterator[Record | Unreadable]:
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
                    yield _record(path, where, json.loads(line.decode()))
                except UnicodeDecodeError as error:
                    yield Unreadable(path, f"line {number} (byte {start - len(line) + error.start})", "not UTF-8 text")
                except ValueError as error:
                    yield Unreadable(path, where, f"not JSON ({error})")
    except OSError as error:
        yield Unreadable(path, "its opening", str(error.strerror))


def read_json(path: Path, field: str | None = None) -> Iterator[Record | Unreadable]:
    """A JSON list of objects: the text in memory, one object at a time."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        yield Unreadable(path, "its opening", str(error.strerror))
        return
    except UnicodeDecodeError as error:
        yield Unreadable(path, f"byte {error.start}", "not UTF-8 text")
        return
    decoder, number, where = json.JSONDecoder(), 0, "its beginning"
    at = _token(text, 0)
    try:
        if text[at : at + 1] != "[":
            raise ValueError("a list of objects is expected; for one object per line name the file .jsonl")
        at = _token(text, at + 1)
        while text[at : at + 1] != "]":
            number += 1
            where = f"record {number} (character {at})"
            value, at = decoder.raw_decode(text, at)
            yield _record(path, where, value)
            at = _token(text, at)
            if text[at : at + 1] == ",":
                at = _token(text, at + 1)
            elif text[at : at + 1] != "]":
                raise ValueError(f"a comma or the end of the list is expected at character {at}")
    except ValueError as error:
        yield Unreadable(path, where, f"not JSON ({error})")


def _token(text: str, at: int) -> int:
    """Where the next character that is not JSON's white space stands."""
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return at


def read_parquet(path: Path, field: str | None = None) -> Iterator[Record | Unreadable]:
    """The rows of a parquet file, a few in memory at a time; of `field` alone where there is one of that name."""
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            columns = [field] if field in table.schema_arrow.names else None
            for batch in table.iter_batches(batch_size=256, columns=columns):
                for values in batch.to_pylist():
                    row += 1
                    yield Record(path, f"row {row}", values)
    except (OSError, pyarrow.ArrowException) as error:
        yield Unreadable(path, f"row {row + 1}", f"not a whole parquet file ({str(error).splitlines()[0]})")


def read_texts(path: Path, field: str, key: str) -> Iterator[Document | Unreadable]:
    """The documents of a file of text, or of one whose records hold a text each in `field`.

    Raises UserError, naming `key`, for a record without the field.
    """
    suffix = path.suffix.lower()
    if suffix in TEXTS:
        yield from TEXTS[suffix](path)
        return
    for record in RECORDS[suffix](path, field):
        if isinstance(record, Unreadable):
            yield record
        else:
            if field not in record.values:
                raise missing_field(record, field, f"{key}.text_field")
            yield from _document(record, record.values[field])


def missing_field(record: Record, field: str, key: str) -> UserError:
    """What to say of a record without a field that `key` names."""
    return UserError(
        f"{key}: '{record.path}' has no field '{field}' in {record.where}; "
        f"it has {', '.join(record.values) or 'none'}.{did_you_mean(field, record.values)}"
    )


def _record(path: Path, where: str, value: Any) -> Record | Unreadable:
    return Record(path, where, value) if isinstance(value, dict) else Unreadable(path, where, "not a JSON object")


def _document(record: Record, value: object) -> Iterator[Document | Unreadable]:
    if not isinstance(value, str):
        reason = f"the text field holds {type(value).__name__}, not text"
        yield Unreadable(record.path, record.where, reason)
        return
    try:
        if value:
            yield Document(value, value.encode())
    except UnicodeEncodeError as error:
        yield Unreadable(record.path, record.where, f"half of a surrogate pair at character {error.start}")


TEXTS: dict[str, Callable[[Path], Iterator[Document | Unreadable]]] = {
    ".txt": read_text,
    ".md": read_text,
    ".py": read_text,
}
RECORDS: dict[str, Callable[[Path, str | None], Iterator[Record | Unreadable]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
