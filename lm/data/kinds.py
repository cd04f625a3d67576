"""The kinds of files that are read, by suffix: of a text, or of records of named fields.

A new one is a function and a line here. A file whose kind tells where a record begins can be read in parts: lines of
.jsonl by bytes, .parquet by row groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lm.data.readers import Document, Part, Record, Unreadable, Wanted, read_json, read_jsonl, read_text
from lm.data.tables import read_arrow, read_parquet

TEXTS: dict[str, Callable[[Part, Wanted], Iterator[Document | Unreadable]]] = {
    ".txt": read_text,
    ".md": read_text,
    ".py": read_text,
}
RECORDS: dict[str, Callable[[Part, Wanted], Iterator[Record | Unreadable]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
