"""Documents of a source of texts: a file that is one, or a field or template of each record that passes the filters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lm.data.compression import kind_of
from lm.data.kinds import RECORDS, TEXTS
from lm.data.options import SourceOptions
from lm.data.readers import Document, Part, Record, Unreadable, Wanted, empty, missing_field, too_long


def read_texts(part: Part, options: SourceOptions, key: str) -> Iterator[Document | Unreadable]:
    """The documents of a part of a file.

    Raises:
        UserError: naming a key below `key`, a record without a field, unless bad records are to be skipped.
    """
    wanted = Wanted(options.fields, options.max_document_bytes)
    kind = kind_of(part.path)
    if kind not in TEXTS:
        yield from texts_of(RECORDS[kind](part, wanted), options, key)
        return
    for item in TEXTS[kind](part, wanted):
        reason = options.filters.refusal(item.text) if isinstance(item, Document) else None
        yield Unreadable(part.path, "its beginning", reason, reason) if reason else item


def texts_of(
    records: Iterable[Record | Unreadable], options: SourceOptions, key: str
) -> Iterator[Document | Unreadable]:
    """The text of each record, as `read_texts` has it."""
    fields = options.fields
    for record in records:
        if isinstance(record, Unreadable):
            yield record
        elif absent := next((name for name in fields if name not in record.values), None):
            error = missing_field(record, absent, f"{key}.{_named_by(absent, options)}")
            if options.bad_records != "skip":
                raise error
            yield Unreadable(record.path, record.where, f"it has no field '{absent}'", "missing field")
        else:
            yield _text_of(record, options)


def _named_by(name: str, options: SourceOptions) -> str:
    if name in options.filters.where:
        return "filters.where"
    return "text_field" if options.template is None else "template"


def _text_of(record: Record, options: SourceOptions) -> Document | Unreadable:
    if wrong := options.filters.wrong_field(record.values):
        return Unreadable(record.path, record.where, f"filtered by '{wrong}'", f"filtered: {wrong}")
    text = record.values[options.text_field] if options.template is None else _written(options.template, record)
    if isinstance(text, Unreadable):
        return text
    if not isinstance(text, str):
        return Unreadable(
            record.path, record.where, f"the text field holds {type(text).__name__}, not text", "not text"
        )
    if not text:
        return empty(record.path, record.where)
    if reason := options.filters.refusal(text):
        return Unreadable(record.path, record.where, reason, reason)
    try:
        utf8 = text.encode()
    except UnicodeEncodeError as error:
        reason = f"half of a surrogate pair at character {error.start}"
        return Unreadable(record.path, record.where, reason, "not UTF-8")
    if len(utf8) > options.max_document_bytes:
        return too_long(record.path, record.where, "the text", options.max_document_bytes)
    return Document(text, utf8, origin=(str(record.path), record.at))


def _written(template: str, record: Record) -> str | Unreadable:
    values = {name: record.values[name] for name in record.values if isinstance(record.values[name], str | int | float)}
    try:
        return template.format_map(values)
    except KeyError as error:
        name = error.args[0]
        reason = f"the field '{name}' holds {type(record.values[name]).__name__}, no text or number"
        return Unreadable(record.path, record.where, reason, "not text")
