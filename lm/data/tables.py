"""Readers of tables: .parquet by row groups, .arrow in either of its layouts, and rows that are in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from lm.data.readers import Part, Record, Unreadable, Wanted
from lm.errors import first_line


def read_parquet(part: Part, wanted: Wanted) -> Iterator[Record | Unreadable]:
    """The rows of a parquet file, a few in memory at a time; of the wanted fields alone where it has them all."""
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(part.path) as table:
            names = table.schema_arrow.names
            columns = list(wanted.fields) if wanted.fields and set(wanted.fields) <= set(names) else None
            groups = range(part.begin, table.num_row_groups if part.end is None else part.end)
            row = sum(table.metadata.row_group(group).num_rows for group in range(part.begin))
            for batch in table.iter_batches(batch_size=256, row_groups=list(groups), columns=columns):
                yield from records_of(batch, part.path, row)
                row += batch.num_rows
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = f"not a whole parquet file ({first_line(error)})"
        yield Unreadable(part.path, f"row {row + 1}", reason, "damaged")


def read_arrow(part: Part, wanted: Wanted) -> Iterator[Record | Unreadable]:
    """The rows of an Arrow file, in either of its layouts: of a stream, as `datasets` writes it, or with an index."""
    row = 0
    try:
        with pyarrow.memory_map(str(part.path)) as source:
            for batch in _arrow_batches(source):
                columns = [name for name in batch.schema.names if name in wanted.fields]
                chosen = batch.select(columns) if columns and len(columns) == len(wanted.fields) else batch
                for begin in range(0, chosen.num_rows, 256):
                    rows = chosen.slice(begin, 256)
                    yield from records_of(rows, part.path, row)
                    row += rows.num_rows
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = f"not a whole Arrow file ({first_line(error)})"
        yield Unreadable(part.path, f"row {row + 1}", reason, "damaged")


def _arrow_batches(source: Any) -> Iterator[Any]:
    if source.read(6) == b"ARROW1":
        with pyarrow.ipc.open_file(source) as table:
            yield from (table.get_batch(number) for number in range(table.num_record_batches))
        return
    source.seek(0)
    with pyarrow.ipc.open_stream(source) as stream:
        yield from stream


def records_of(table: Any, path: Path, before: int, of: str = "") -> Iterator[Record | Unreadable]:
    """The rows of an Arrow table or batch, the first of which is row `before` + 1.

    of: what that counts in, in words, where it is not the file.
    """
    for number, values in enumerate(_values_of(table), before + 1):
        place = f"row {number}{of}"
        if isinstance(values, Exception) and "UTF8" in str(values):
            yield Unreadable(path, place, "not UTF-8 text", "not UTF-8")
        elif isinstance(values, Exception):
            yield Unreadable(path, place, f"a value that cannot be read ({first_line(values)})")
        else:
            yield Record(path, place, values, number)


def _values_of(table: Any) -> list[dict[str, Any] | Exception]:
    try:
        table.validate(full=True)  # a damaged Arrow file, which is mapped as it is, would be read beyond its end
        decode = _json_in(table.schema) or (lambda row: row)
        values: list[dict[str, Any] | Exception] = [decode(row) for row in table.to_pylist()]
    except (ValueError, OverflowError, RecursionError) as error:  # bytes that are no text, dates that Python lacks, ...
        if table.num_rows == 1:
            return [error]
        return [value for row in range(table.num_rows) for value in _values_of(table.slice(row, 1))]
    return values


def _json_in(fields: Iterable[Any]) -> Callable[[Any], Any] | None:
    """What reads the JSON in rows of such fields; None where there is none.

    `datasets` writes JSON where values differ in type or fields, such as messages of which some call tools.
    """
    decoders = {field.name: decode for field in fields if (decode := _json_of(field.type))}
    return (lambda row: row | {name: decode(row[name]) for name, decode in decoders.items()}) if decoders else None


def _json_of(kind: Any) -> Callable[[Any], Any] | None:
    types = pyarrow.types
    decode: Callable[[Any], Any] | None = None
    if isinstance(kind, pyarrow.JsonType):
        decode = json.loads
    elif types.is_struct(kind):
        decode = _json_in(kind)
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        element = _json_of(kind.value_type)
        decode = element and (lambda values: list(map(element, values)))
    return decode and (lambda value: None if value is None else decode(value))
