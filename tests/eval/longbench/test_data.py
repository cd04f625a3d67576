from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

from eval.longbench.data import Row, read_rows
from lm.errors import UserError

NewRow = Callable[..., dict[str, Any]]


def test_every_form_of_the_data_holds_the_same_rows(
    copy: Path, tmp_path: Path, one_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [one_row("trec", length=length, _id=f"trec-{length}") for length in (3999, 4000, 8000)]
    assert read_rows(str(copy), "trec") == expected
    assert read_rows(str(copy.parent), "trec") == expected

    archive = shutil.make_archive(str(tmp_path / "data"), "zip", copy.parent)
    assert read_rows(archive, "trec_e") == expected
    monkeypatch.setattr("eval.longbench.data.hf_hub_download", lambda repository, name, repo_type: archive)
    assert read_rows("THUDM/LongBench", "trec") == expected

    table = pyarrow.Table.from_pylist(
        [json.loads(line) for line in (copy / "trec.jsonl").read_text().split("\n") if line]
    )
    table = table.rename_columns(["question" if name == "input" else name for name in table.column_names])
    (tmp_path / "tables" / "trec").mkdir(parents=True)
    pyarrow.parquet.write_table(table, tmp_path / "tables" / "trec" / "test-00000-of-00001.parquet")
    assert read_rows(str(tmp_path / "tables"), "trec") == expected


def test_a_copy_on_the_hub_without_the_archive_is_loaded_as_a_dataset(
    monkeypatch: pytest.MonkeyPatch, new_row: NewRow, one_row: Callable[..., Row]
) -> None:
    def no_archive(*_: Any, **__: Any) -> str:
        raise EntryNotFoundError("404")

    def load(repository: str, name: str, split: str) -> list[dict[str, Any]]:
        assert (repository, name, split) == ("someone/copy", "qasper", "test")
        return [new_row("qasper")]

    monkeypatch.setattr("eval.longbench.data.hf_hub_download", no_archive)
    monkeypatch.setattr("datasets.load_dataset", load)
    assert read_rows("someone/copy", "qasper") == [one_row("qasper")]


def test_data_that_are_not_there_are_asked_for(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise OfflineModeIsEnabled("offline mode")

    monkeypatch.setattr("eval.longbench.data.hf_hub_download", offline)
    (tmp_path / "note.zip").write_text("no archive")
    (copy / "lcc.jsonl").unlink()
    for place in (tmp_path / "none", copy, tmp_path / "note.zip", "THUDM/LongBench"):
        with pytest.raises(UserError, match=r"data\.zip of the Hub's dataset THUDM/LongBench"):
            read_rows(str(place), "lcc")


ROW = {"input": "x", "context": "y", "answers": ["z"], "length": 3}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"length": None}, "length is missing or of another type"),
        ({"answers": "z"}, "answers is missing or of another type"),
        ({"answers": ["z", 7]}, "answers is missing or of another type"),
        ({"answers": []}, "it has no answers"),
        ({"all_classes": "z"}, "all_classes is missing or of another type"),
    ],
)
def test_other_rows_are_refused_by_place(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    (tmp_path / "qasper.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | changes))
    with pytest.raises(UserError, match=f"qasper, row 2: not a row of LongBench, {said}"):
        read_rows(str(tmp_path), "qasper")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"input": ', r"qasper: cannot be read: line 2: .*data\.zip"),
        (b'{"input": "\xff"}', r"qasper: cannot be read: line 2: 'utf-8' codec .*data\.zip"),
        (b"[1, 2]", r"qasper, row 2: not a row of LongBench but \[1, 2\]"),
        (b"null", "qasper, row 2: not a row of LongBench but null"),
    ],
)
def test_other_lines_are_refused_by_place(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "qasper.jsonl").write_bytes(json.dumps(ROW).encode() + b"\n" + text)
    with pytest.raises(UserError, match=said):
        read_rows(str(tmp_path), "qasper")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(tmp_path / "qasper.jsonl", "data/qasper.jsonl")
    with pytest.raises(UserError, match=said):
        read_rows(str(tmp_path / "data.zip"), "qasper")


def test_damaged_and_empty_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "samsum.parquet").write_text("no table")
    with pytest.raises(UserError, match=r"samsum: cannot be read: .*data\.zip"):
        read_rows(str(tmp_path), "samsum")
    (tmp_path / "qasper_e.jsonl").write_text("\n")
    with pytest.raises(UserError, match="qasper_e: there are no such rows"):
        read_rows(str(tmp_path), "qasper_e")
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lcc.jsonl", json.dumps(ROW) * 9)
    whole = (tmp_path / "data.zip").read_bytes()
    (tmp_path / "data.zip").write_bytes(whole[:40] + b"\0" * 20 + whole[60:])
    with pytest.raises(UserError, match=r"data\.zip is no zip archive that can be read"):
        read_rows(str(tmp_path / "data.zip"), "lcc")

    def unreadable(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", unreadable)  # root reads every file
    with pytest.raises(UserError, match=r"qasper_e: cannot be read: .*Permission denied"):
        read_rows(str(tmp_path), "qasper_e")
