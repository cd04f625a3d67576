from __future__ import annotations

import json
import shutil
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


def test_other_rows_are_refused_by_place(tmp_path: Path) -> None:
    (tmp_path / "qasper.jsonl").write_text('{"input": "x", "context": "y", "answers": ["z"]}\n')
    with pytest.raises(UserError, match=r"qasper, row 1: .* length is missing"):
        read_rows(str(tmp_path), "qasper")
    (tmp_path / "trec.jsonl").write_text('{"input": "x", "context": "y", "answers": "z", "length": 3}\n')
    with pytest.raises(UserError, match=r"trec, row 1: .* answers is missing or of another type"):
        read_rows(str(tmp_path), "trec")
    (tmp_path / "lcc.jsonl").write_text('{"input": ')
    (tmp_path / "samsum.parquet").write_text("no table")
    for name in ("lcc", "samsum"):
        with pytest.raises(UserError, match=rf"{name}: cannot be read: .*data\.zip"):
            read_rows(str(tmp_path), name)
