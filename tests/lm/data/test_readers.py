"""Each file kind gives its texts unchanged and says where it cannot."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm.data.compression import kind_of
from lm.data.kinds import RECORDS, TEXTS
from lm.data.options import SourceOptions
from lm.data.readers import Document, Part, Record, Unreadable, Wanted, missing_field, read_json
from lm.data.source_options import FilterOptions, RangeOptions
from lm.data.texts import read_texts
from lm.errors import UserError


def read(path: Path, field: str = "text") -> list[str]:
    """Texts as they are, unreadable items as "! where: reason"."""
    items = read_texts(Part(path), SourceOptions(path=str(path), text_field=field), "data.sources.0")
    return [item.text if isinstance(item, Document) else f"! {item.where}: {item.reason}" for item in items]


@given(
    text=st.text(st.sampled_from("ab\r\n\t\ufeff\u00e4"), max_size=6).filter(lambda text: text[:1] != "\ufeff"),
    marked=st.booleans(),
)
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_text_is_what_follows_its_byte_order_mark(tmp_path: Path, text: str, marked: bool) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes((b"\xef\xbb\xbf" if marked else b"") + text.encode())
    (item,) = read_texts(Part(path), SourceOptions(path=str(path), max_document_bytes=max(1, len(text.encode()))), "")
    if text:
        assert isinstance(item, Document)
        assert (item.text, item.utf8) == (text, text.encode())
    else:
        assert isinstance(item, Unreadable)
        assert item.kind == "empty"


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_records_may_follow_a_byte_order_mark(tmp_path: Path, suffix: str) -> None:
    mark, one, two = b"\xef\xbb\xbf", b'{"text": "one"}', b'{"text": "\xff"}'
    path = tmp_path / f"a{suffix}"
    path.write_bytes(mark + (b"[%s]" % one if suffix == ".json" else one + b"\n"))
    (record,) = RECORDS[suffix](Part(path), Wanted())
    assert isinstance(record, Record)
    assert record.values == {"text": "one"}
    path.write_bytes(mark + (b"[%s]" % two if suffix == ".json" else two))
    (bad,) = RECORDS[suffix](Part(path), Wanted())
    assert f"byte {path.read_bytes().index(0xFF)}" in bad.where


def test_json_that_is_nested_too_deeply_is_one_bad_record(tmp_path: Path) -> None:
    deep = "[" * 100_000
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "one"}}\n{deep}\n{{"text": "two"}}\n')
    assert read(path) == ["one", "! line 2 (byte 16): nested too deeply", "two"]
    path = tmp_path / "a.json"
    path.write_text(f'[{{"text": "one"}}, {deep}')
    _, bad = read_json(Part(path), Wanted())
    assert isinstance(bad, Unreadable)
    assert (bad.where, bad.kind) == ("record 2 (character 18)", "not JSON")


@given(
    flips=st.lists(st.tuples(st.integers(0, 2**32), st.integers(1, 255)), max_size=8),
    cut=st.none() | st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.json.gz", "a.txt.zst", "a.jsonl.zst"])
def test_a_damaged_archive_is_told_and_what_is_read_is_true(
    tmp_path: Path, name: str, flips: list[tuple[int, int]], cut: int | None
) -> None:
    path = tmp_path / name
    records = [{"text": f"{number} {number**7}"} for number in range(50)]
    whole = (
        json.dumps(records) if ".json." in name else "".join(json.dumps(record) + "\n" for record in records)
    ).encode()
    packed = bytearray(gzip.compress(whole) if name.endswith("gz") else compressed(whole))
    for at, change in flips:
        packed[at % len(packed)] ^= change
    path.write_bytes(packed[: None if cut is None else 1 + cut % len(packed)])
    kind = kind_of(path)
    items = list((TEXTS.get(kind) or RECORDS[kind])(Part(path), Wanted()))
    *good, last = items
    if isinstance(last, Unreadable):
        assert last.kind in {"damaged", "not UTF-8", "not JSON", "empty", "unreadable file"}, last
    if not flips:
        assert isinstance(last, Unreadable) == (path.stat().st_size < len(packed))
        if ".jsonl." in name:
            assert [item.values for item in good if isinstance(item, Record)] == records[: len(good)]


def compressed(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def test_jsonl_reads_one_document_per_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\\n"}\n\n{"text": ""}\n{"n": 1, "text": "zw\u00f6lf"}')
    assert read(path) == ["one\n", "! line 3 (byte 19): the text is empty", "zw\u00f6lf"]


def test_jsonl_says_which_line_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = b'{"text": "good"}\n'
    path.write_bytes(
        good + b'{"text": \n' + b'{"text": "\xff"}\n' + b"[1]\n" + b'{"text": 5}\n{"text": "\\ud800"}\n' + good
    )
    items = read(path)
    assert items[0] == items[-1] == "good"
    expected = ["line 2 (byte 17): not JSON", "line 3 (byte 37): not UTF-8", "line 4", "line 5", "line 6"]
    for item, start in zip(items[1:-1], expected, strict=True):
        assert item.startswith(f"! {start}")


def test_parquet_reads_the_text_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [f"document {number}" for number in range(1000)]
    pyarrow.parquet.write_table(pyarrow.table({"body": [*rows, None], "n": range(1001)}), path, row_group_size=100)
    assert read(path, "body") == [*rows, "! row 1001: the text field holds NoneType, not text"]


def strings(values: list[bytes]) -> pyarrow.Array:
    """A column of strings, which Arrow does not look into."""
    buffers = pyarrow.array(values, type=pyarrow.binary()).buffers()
    return pyarrow.Array.from_buffers(pyarrow.string(), len(values), buffers)


@given(
    values=st.lists(st.binary(min_size=1, max_size=3) | st.just(b"good"), min_size=1, max_size=600),
    suffix=st.sampled_from([".parquet", ".arrow"]),
)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_that_are_no_text_are_told_by_their_row(tmp_path: Path, values: list[bytes], suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    table = pyarrow.table({"text": strings(values)})
    if suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=250)
    else:
        with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)

    def expected(row: int, value: bytes) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            return f"! row {row}: not UTF-8 text"

    assert read(path) == [expected(row, value) for row, value in enumerate(values, 1)]


json_values = st.none() | st.integers(-9, 9) | st.text(st.sampled_from('a"\u00e4'), max_size=3)
json_values = st.recursive(
    json_values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
)


@given(rows=st.lists(st.tuples(json_values, st.none() | st.lists(json_values, max_size=3)), min_size=1, max_size=5))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_in_tables_is_read(tmp_path: Path, rows: list[tuple[Any, Any]]) -> None:
    def written(values: Any) -> Any:
        return pyarrow.array(values, type=pyarrow.string()).cast(pyarrow.json_())

    plain = written([json.dumps(one) for one, _ in rows])
    flat = written([json.dumps(one) for _, many in rows for one in many or []])
    ends = np.cumsum([0, *(len(many or []) for _, many in rows)]).tolist()
    begins = [None if many is None else end for (_, many), end in zip(rows, ends, strict=False)]
    lists = pyarrow.ListArray.from_arrays(pyarrow.array([*begins, ends[-1]], type=pyarrow.int32()), flat)
    within = pyarrow.StructArray.from_arrays([plain, pyarrow.array(range(len(rows)))], ["json", "n"])
    pyarrow.parquet.write_table(pyarrow.table({"one": plain, "many": lists, "in": within}), tmp_path / "a.parquet")
    found = [item.values for item in RECORDS[".parquet"](Part(tmp_path / "a.parquet"), Wanted())]
    assert found == [
        {"one": one, "many": many, "in": {"json": one, "n": number}} for number, (one, many) in enumerate(rows)
    ]


def test_json_in_tables_that_is_none_is_one_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    text = pyarrow.array(['"one"', "{", "[" * 100_000, '"two"']).cast(pyarrow.json_())
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), path)
    one, *bad, two = read(path)
    assert (one, two) == ("one", "two")
    assert [item.split(":")[0] for item in bad] == ["! row 2", "! row 3"]


def test_a_damaged_arrow_file_is_not_read_beyond_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    ends = np.array([0, 3, -7, 6, 2**30, 9], dtype=np.int32)
    text = pyarrow.Array.from_buffers(
        pyarrow.string(), 5, [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(b"onetwosix")]
    )
    with pyarrow.ipc.new_stream(str(path), pyarrow.schema({"text": pyarrow.string()})) as stream:
        stream.write_batch(pyarrow.record_batch({"text": text}))
    items = read(path)
    assert items[0] == "one"
    assert len(items) == 5
    for row, item in enumerate(items[1:], 2):
        assert item.startswith(f"! row {row}: a value that cannot be read (")


def test_a_value_that_python_cannot_hold_is_one_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    dates = pyarrow.array([0, 2**40], type=pyarrow.timestamp("s"))  # the second is in the year 36812
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"], "at": dates}), path)
    options = SourceOptions(path=str(path), filters=FilterOptions(where={"at": RangeOptions(min=0)}))
    filtered, bad = read_texts(Part(path), options, "")
    assert isinstance(filtered, Unreadable)
    assert filtered.kind == "filtered: at"
    assert str(bad).startswith(f"'{path}' cannot be read at row 2: a value that cannot be read (")


def test_a_truncated_parquet_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"]}), path)
    path.write_bytes(path.read_bytes()[:-20])
    (item,) = read_texts(Part(path), SourceOptions(path=str(path)), "")
    assert isinstance(item, Unreadable)
    assert "not a whole parquet file" in str(item)
    assert str(path) in str(item)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_missing_field_is_refused_with_the_nearest_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".jsonl":
        path.write_text(json.dumps({"contents": "x", "id": 1}))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"contents": ["x"], "id": [1]}), path)
    with pytest.raises(UserError, match=r"data\.sources\.0\.text_field: .*'content'.*Did you mean 'contents'"):
        read(path, "content")


def test_a_json_list_is_read_one_object_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    records = [{"n": number, "text": "[{zw\u00f6lf}, "} for number in range(3)]
    for layout in (json.dumps(records), json.dumps(records, indent=2, ensure_ascii=False) + "\n"):
        path.write_text(layout)
        assert [item.values for item in read_json(Part(path), Wanted())] == records
    path.write_text(" [ ] ")
    assert list(read_json(Part(path), Wanted())) == []


@pytest.mark.parametrize(
    ("content", "good", "message"),
    [
        (b'{"n": 0}', 0, "its beginning: not JSON (a list of objects is expected"),
        (b"", 0, "its beginning"),
        (b'[{"n": 0}, {"n": ]', 1, "record 2 (character 11): not JSON"),
        (b'[{"n": 0} {"n": 1}]', 1, "record 1 (character 1): not JSON (a comma or the end of the list"),
        (b'[{"n": 0}, 5, {"n": 1}]', 2, "record 2 (character 11): not a JSON object"),
        (b'[{"n": 0}', 1, "record 1 (character 1): not JSON (a comma or the end of the list"),
        (b'[{"n": "\xff"}]', 0, "byte 8: not UTF-8"),
    ],
)
def test_a_broken_json_list_says_which_record(tmp_path: Path, content: bytes, good: int, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    items = list(read_json(Part(path), Wanted()))
    (broken,) = (item for item in items if isinstance(item, Unreadable))
    assert len(items) == good + 1
    assert f"cannot be read at {message}" in str(broken)


def test_of_many_fields_a_message_lists_a_dozen() -> None:
    record = Record(Path("log.jsonl"), "line 1", {f"field{number}": number for number in range(30)}, 0)
    said = str(missing_field(record, "feild20", "data.sources.0.text_field"))
    assert said.endswith("field10, field11 and 18 more. Did you mean 'field20'?")
