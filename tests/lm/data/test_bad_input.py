"""What cannot be used: named by file and row, skipped or refused as the run file says, counted, and not held."""

import gzip
import hashlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lm.data.options import DataOptions
from lm.data.prepare import Prepared, prepare
from lm.errors import UserError

BYTES = {"kind": "bytes"}
GOOD = "".join(json.dumps({"text": f"good {number}"}) + "\n" for number in range(20)).encode()


def prepared_from(path: Path, *, tokenizer: Any = BYTES, sequence_length: int = 16, **source: Any) -> Prepared:
    values = {
        "tokenizer": tokenizer,
        "sources": [{"path": str(path), **source}],
        "sequence_length": sequence_length,
        "validation": {"fraction": 0},
        "cache_dir": path.parent / "cache",
    }
    return prepare(DataOptions.model_validate(values))


def invalid_utf8(folder: Path) -> Path:
    path = folder / "a.jsonl"
    path.write_bytes(GOOD + b'{"text": "\xff"}\n' + GOOD)
    return path


def empty_text(folder: Path) -> Path:
    path = folder / "a.jsonl"
    path.write_bytes(GOOD + b'{"text": ""}\n' + GOOD)
    return path


def long_line(folder: Path) -> Path:
    path = folder / "a.jsonl"
    path.write_bytes(GOOD + b'{"text": "' + b"x" * 3_000_000 + b'"}\n' + GOOD)
    return path


def truncated_gzip(folder: Path) -> Path:
    path = folder / "a.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD + GOOD + b'{"text": "' + hashlib.sha512(GOOD).digest())[:-60])
    return path


def truncated_zstandard(folder: Path) -> Path:
    path = folder / "a.jsonl.zst"
    frames = [pyarrow.Codec("zstd").compress(content, asbytes=True) for content in (GOOD, GOOD, GOOD)]
    path.write_bytes(frames[0] + frames[1] + frames[2][:-20])
    return path


def truncated_parquet(folder: Path) -> Path:
    path = folder / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"]}), path)
    path.write_bytes(path.read_bytes()[:-20])
    (folder / "b.jsonl").write_bytes(GOOD + GOOD)
    return path


def missing_field(folder: Path) -> Path:
    path = folder / "a.jsonl"
    path.write_bytes(GOOD + b'{"content": "here"}\n' + GOOD)
    return path


CASES = [
    (invalid_utf8, "not UTF-8", r"line 21 \(byte \d+\): not UTF-8"),
    (empty_text, "empty", r"line 21 \(byte \d+\): the text is empty"),
    (long_line, "too long", r"line 21 \(byte \d+\): the line has more than the 1000000 bytes of max_document_bytes"),
    (truncated_gzip, "damaged", r"line 41 \(byte \d+\): cut short"),
    (truncated_zstandard, "damaged", r"line 41 \(byte \d+\): cut short"),
    (truncated_parquet, "damaged", r"row 1: not a whole parquet file"),
    (missing_field, "missing field", r"no field 'text' in line 21"),
]


@pytest.mark.parametrize(("broken", "kind", "message"), CASES, ids=[case[0].__name__ for case in CASES])
def test_it_is_refused_or_skipped_as_asked_and_counted(
    tmp_path: Path, broken: Callable[[Path], Path], kind: str, message: str
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    path = broken(folder)
    with pytest.raises(UserError, match=rf"'?.*{path.name}'? .*{message}"):
        prepared_from(folder, bad_records="refuse", max_document_bytes=1_000_000)
    (manifest,) = prepared_from(folder, bad_records="skip", max_document_bytes=1_000_000).manifests
    assert manifest.documents == 40
    assert manifest.skipped == {kind: 1}
    if kind != "empty":
        assert path.name in manifest.examples[0]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_sample_that_the_chat_template_refuses_is_one_bad_record(
    inst_folder: Path, tmp_path: Path, suffix: str
) -> None:
    good = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    records = [{"messages": good}] * 20 + [{"messages": [{"role": "system", "content": "Be brief."}, *good]}] * 2
    path = tmp_path / f"a{suffix}"
    path.write_text(json.dumps(records) if suffix == ".json" else "\n".join(map(json.dumps, records)))
    chosen: dict[str, Any] = {
        "kind": "chat",
        "tokenizer": {"kind": "huggingface", "path": inst_folder},
        "sequence_length": 64,
    }
    said = rf"^data\.sources\.0\.path: '{path}' .* at (line|record) 21 .*only user and assistant are known.*bad_records"
    with pytest.raises(UserError, match=said):
        prepared_from(path, **chosen)
    prepared = prepared_from(path, bad_records="skip", **chosen)
    (manifest,) = prepared.manifests
    assert (manifest.documents, manifest.skipped) == (20, {"malformed": 2})
    assert " 21 (" in manifest.examples[0]
    rows = prepared.train.sources[0]
    places = [rows.origin(document) for document in range(rows.num_documents)]
    assert {name for name, _ in places} == {str(path)}
    assert len(set(places)) == 20


def test_a_line_that_is_too_long_is_not_held(tmp_path: Path) -> None:
    path = long_line(tmp_path)
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + 50_000_000)  # one line of zeros
        file.seek(0, 2)
        file.write(b"\n" + GOOD)
    tracemalloc.start()
    (manifest,) = prepared_from(path, bad_records="skip", max_document_bytes=1_000_000).manifests
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert manifest.skipped == {"too long": 2}
    assert manifest.documents == 60
    assert peak < 20_000_000


def test_filters_keep_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [
        {"text": "long enough", "language": "en", "score": 3.5},
        {"text": "long enough too", "language": "de", "score": 1},
        {"text": "short", "language": "en", "score": 5},
        {"text": "long enough, but Klingon", "language": "tlh", "score": 5},
        {"text": "long enough, really long", "language": "de", "score": 4},
        {"text": "no score, sorry", "language": "de", "score": None},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    filters = {"min_characters": 6, "max_characters": 20, "where": {"language": ["en", "de"], "score": {"min": 2}}}
    (manifest,) = prepared_from(path, filters=filters).manifests
    assert manifest.documents == 1
    assert manifest.skipped == {
        "filtered: language": 1,
        "filtered: max_characters": 1,
        "filtered: min_characters": 1,
        "filtered: score": 2,
    }
    with pytest.raises(UserError, match=r"^data\.sources\.0\.filters: nothing of '.*' is left"):
        prepared_from(path, filters={"min_characters": 1000})
    with pytest.raises(UserError, match=r"sources\.0\.filters\.where: .*no field 'lang'.*Did you mean 'language'"):
        prepared_from(path, filters={"where": {"lang": "en"}})


def test_a_template_makes_a_text_of_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"title": "T", "body": "B {x}", "n": 3, "tags": []}))
    prepared = prepared_from(path, template="# {title} {{{n}}}\n{body}")
    batch = prepared.train.rows([0])
    assert prepared.tokenizer.decode(batch.tokens[0].tolist()).startswith("# T {3}\nB {x}")
    with pytest.raises(UserError, match="holds list, no text or number"):
        prepared_from(path, template="{title} {tags}")
    for wrong in ("no field", "{}", "{title.x}", "{title!r}", "{title"):
        with pytest.raises(ValueError, match="template: "):
            prepared_from(path, template=wrong)
