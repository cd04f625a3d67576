"""Readers of text and JSON: each walks a part of one file and yields its documents, and what it could not read."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lm.data.compression import DAMAGE, CannotOpenError, open_bytes
from lm.errors import UserError, did_you_mean

_NAMES_SAID = 12
"""Fields of a record that a message lists."""


@dataclass(frozen=True)
class Part:
    """A file, or those of its records that begin between `begin` and `end`: bytes of lines, row groups of parquet.

    size: bytes on disk, about.
    """

    path: Path
    size: int = 0
    begin: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Document:
    """One non-empty text, and the same as UTF-8. origin: the file, and the byte of its line, or its row."""

    text: str
    utf8: bytes
    origin: tuple[str, int] = field(default=("", 0), kw_only=True)


@dataclass(frozen=True)
class Unreadable:
    """What could not be read, or is left out: where, why, and of which kind that is."""

    path: Path
    where: str
    reason: str
    kind: str = "unreadable"

    def __str__(self) -> str:
        fate = "is left out" if is_filter(self.kind) else "cannot be read"
        return f"'{self.path}' {fate} at {self.where}: {self.reason}"


def is_filter(kind: str) -> bool:
    """Whether what is left out as of this kind is left out by the user's wish."""
    return kind.startswith("filtered")


@dataclass(frozen=True)
class Record:
    """Named values, and where they stand; `at`: the byte of a line, or the row. place: the same in words, or how to
    find them, which may take reading."""

    path: Path
    place: str | Callable[[], str]
    values: dict[str, Any]
    at: int = 0

    @property
    def where(self) -> str:
        """Where it stands, in words."""
        return self.place if isinstance(self.place, str) else self.place()


@dataclass(frozen=True)
class Wanted:
    """What a reader is to give: these fields, where it can tell them apart, of records of at most so many bytes."""

    fields: Sequence[str] = ()
    max_bytes: int = 2**62


def read_text(part: Part, wanted: Wanted) -> Iterator[Document | Unreadable]:
    """A whole file as one document, line ends untouched, without the byte-order mark that it may begin with."""
    try:
        with open_bytes(part.path) as file:
            content = _read(file, len(BOM_UTF8) + wanted.max_bytes + 1)
        utf8 = content.removeprefix(BOM_UTF8)
        if len(utf8) > wanted.max_bytes:
            yield too_long(part.path, "its beginning", "the file", wanted.max_bytes)
        elif utf8:
            yield Document(_decoded(content), utf8, origin=(str(part.path), 0))
        else:
            yield empty(part.path, "its beginning")
    except CannotOpenError as error:
        yield Unreadable(part.path, "its opening", str(error), "unreadable file")
    except UnicodeDecodeError as error:
        yield Unreadable(part.path, f"byte {error.start}", "not UTF-8 text", "not UTF-8")
    except DAMAGE as error:
        yield _damaged(part.path, "its end", error)


def _read(file: BinaryIO, most: int) -> bytes:
    """`file.read(most)`, which sets aside as much memory, however small the file."""
    pieces: list[bytes] = []
    while most > 0 and (piece := file.read(min(most, 1 << 24))):
        pieces.append(piece)
        most -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_jsonl(part: Part, wanted: Wanted) -> Iterator[Record | Unreadable]:
    """One JSON object per line; blank lines are ignored."""
    path = part.path
    start, counted = part.begin, 0

    def where(byte: int | None = None) -> str:
        return _line(part, counted, start if byte is None else byte)

    try:
        with open_bytes(path) as file:
            if part.begin:
                file.seek(part.begin - 1)
                start += _skip_line(file) - 1  # the line that began before belongs to the part before
            while part.end is None or start < part.end:
                line = file.readline(wanted.max_bytes + 2)
                if not line:
                    return
                counted += 1
                if len(line) > wanted.max_bytes + 1:
                    yield too_long(path, where(), "the line", wanted.max_bytes)
                    start += len(line) + _skip_line(file)
                    continue
                if line.strip():
                    try:
                        place = partial(_line, part, counted, start)
                        yield _record(path, place, start, json.loads(_decoded(line)))
                    except UnicodeDecodeError as error:
                        yield Unreadable(path, where(start + error.start), "not UTF-8 text", "not UTF-8")
                    except (ValueError, RecursionError) as error:
                        yield _not_json(path, where(), error)
                start += len(line)
    except CannotOpenError as error:
        yield Unreadable(path, "its opening", str(error), "unreadable file")
    except DAMAGE as error:
        counted += 1
        yield _damaged(path, where(), error)


def _line(part: Part, counted: int, byte: int) -> str:
    """A line in words, by its number in the part. Only asked where something is to be named."""
    number = counted
    if part.begin:
        number += 1
        with part.path.open("rb") as file:
            while block := file.read(min(1 << 20, part.begin - 1 - file.tell())):
                number += block.count(b"\n")
    return f"line {number} (byte {byte})"


def _skip_line(file: BinaryIO) -> int:
    """Bytes to the end of the line, which are let go."""
    skipped = 0
    while block := file.readline(1 << 20):
        skipped += len(block)
        if block.endswith(b"\n"):
            break
    return skipped


def read_json(part: Part, wanted: Wanted) -> Iterator[Record | Unreadable]:
    """A JSON list of objects: the text in memory, one object at a time."""
    path = part.path
    try:
        with open_bytes(path) as file:
            text = _decoded(file.read())
    except CannotOpenError as error:
        yield Unreadable(path, "its opening", str(error), "unreadable file")
        return
    except DAMAGE as error:
        yield _damaged(path, "its end", error)
        return
    except UnicodeDecodeError as error:
        yield Unreadable(path, f"byte {error.start}", "not UTF-8 text", "not UTF-8")
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
            yield _record(path, where, number, value)
            at = _token(text, at)
            if text[at : at + 1] == ",":
                at = _token(text, at + 1)
            elif text[at : at + 1] != "]":
                raise ValueError(f"a comma or the end of the list is expected at character {at}")
    except (ValueError, RecursionError) as error:
        yield _not_json(path, where, error)


def _decoded(content: bytes) -> str:
    """The text without the byte-order mark that it may begin with, as may each line of files that were joined."""
    return content.decode().removeprefix("\ufeff")


def _token(text: str, at: int) -> int:
    """Where the next character that is not JSON's white space stands."""
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return at


def missing_field(record: Record, name: str, key: str) -> UserError:
    """What to say of a record without a field that `key` names."""
    names = list(record.values)
    more = f" and {len(names) - _NAMES_SAID} more" if len(names) > _NAMES_SAID else ""
    return UserError(
        f"{key}: '{record.path}' has no field '{name}' in {record.where}; "
        f"it has {', '.join(names[:_NAMES_SAID]) or 'none'}{more}.{did_you_mean(name, names)}"
    )


def empty(path: Path, where: str) -> Unreadable:
    """A text without a character."""
    return Unreadable(path, where, "the text is empty", "empty")


def too_long(path: Path, where: str, what: str, max_bytes: int) -> Unreadable:
    """Something of more bytes than may be."""
    return Unreadable(path, where, f"{what} has more than the {max_bytes} bytes of max_document_bytes", "too long")


def _damaged(path: Path, where: str, error: Exception) -> Unreadable:
    return Unreadable(path, where, f"cut short or damaged ({error})", "damaged")


def _not_json(path: Path, where: str, error: Exception) -> Unreadable:
    reason = "nested too deeply" if isinstance(error, RecursionError) else f"not JSON ({error})"
    return Unreadable(path, where, reason, "not JSON")


def _record(path: Path, place: str | Callable[[], str], at: int, value: Any) -> Record | Unreadable:
    record = Record(path, place, value, at)
    return record if isinstance(value, dict) else Unreadable(path, record.where, "not a JSON object", "not JSON")
