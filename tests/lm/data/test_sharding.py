"""Shards: every record in one of them, whatever the kind of file and wherever it is cut."""

import gzip
import json
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.options import SourceOptions
from lm.data.readers import Part, Unreadable, Wanted, read_jsonl
from lm.data.sharding import TextFile, shards_of
from lm.data.sources import find_source

lines = st.lists(st.text(st.sampled_from("ab\u00e9"), max_size=20), min_size=1, max_size=30)


@given(texts=lines, shard_bytes=st.integers(1, 400), ends=st.booleans())
@settings(deadline=None, max_examples=60)
def test_lines_are_read_once_wherever_a_file_is_cut(texts: list[str], shard_bytes: int, ends: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        written = "\n".join(json.dumps({"n": number, "text": text}) for number, text in enumerate(texts))
        path.write_text(written + "\n" * ends)
        shards = shards_of([TextFile(path, path.stat().st_size, 0)], True, shard_bytes)
        records = [record for shard in shards for part in shard for record in read_jsonl(part, Wanted())]
        assert [record.values["n"] for record in records] == list(range(len(texts)))
        assert [record.where.split()[1] for record in records] == [str(number + 1) for number in range(len(texts))]
        assert all(path.read_bytes()[record.at :].startswith(b'{"n"') for record in records)


@given(sizes=st.lists(st.integers(0, 100), min_size=1, max_size=20), shard_bytes=st.integers(1, 150))
@settings(deadline=None, max_examples=60)
def test_files_are_put_together_in_order_and_none_is_forgotten(sizes: list[int], shard_bytes: int) -> None:
    files = [TextFile(Path(f"{number}.txt"), size, 0) for number, size in enumerate(sizes)]
    shards = shards_of(files, True, shard_bytes)
    assert [part.path for shard in shards for part in shard] == [file.path for file in files]
    assert all(len(shard) == 1 or sum(part.size for part in shard) <= shard_bytes * 3 // 2 for shard in shards)


def test_a_file_is_added_up_a_few_times_however_many_there_are() -> None:
    count, added = 200_000, 0

    class Size(int):
        def __add__(self, other: int) -> int:
            nonlocal added
            added += 1
            assert added <= 10 * count, "the work grows faster than the number of files"
            return Size(int(self) + int(other))

        __radd__ = __add__

    files = [TextFile(Path("a.txt"), Size(500), 0)] * count
    assert sum(map(len, shards_of(files, True))) == count
    assert added > count


def test_parquet_is_cut_at_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [f"document {number}" for number in range(95)]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path, row_group_size=10)
    source = find_source(SourceOptions(path=str(path)), "data.sources.0", path.stat().st_size // 4)
    assert len(source.shards) > 2
    documents = list(source.documents())
    assert [document.text for document in documents] == rows
    assert [document.origin for document in documents] == [(str(path), number + 1) for number in range(95)]


def test_arrow_and_compressed_files_are_read(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["one", "two"]})
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    with pyarrow.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    content = b'{"text": "three"}\n{"text": "four"}'
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(content[:18]) + gzip.compress(content[18:]))
    (tmp_path / "d.jsonl.zst").write_bytes(pyarrow.Codec("zstd").compress(content, asbytes=True))
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(b"five"))
    (tmp_path / "f.bin.gz").write_bytes(gzip.compress(b"six"))
    source = find_source(SourceOptions(path=str(tmp_path)), "data.sources.0")
    assert [document.text for document in source.documents()] == [*["one", "two"] * 2, *["three", "four"] * 2, "five"]
    assert source.ignored_in_words() == "5 files (1 ignored: .gz)"


def test_a_broken_line_is_named_by_its_number_in_the_file_from_any_part(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n' * 10 + b"{\n" + b'{"text": "y"}\n')
    items = [item for item in read_jsonl(Part(path, begin=100), Wanted()) if isinstance(item, Unreadable)]
    assert [item.where for item in items] == ["line 11 (byte 140)"]
