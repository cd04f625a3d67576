"""Datasets of the Hub: from folders laid out as one, and what is said and done where the Hub cannot be reached."""

import os
from pathlib import Path
from typing import Any

import datasets
import httpx
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from lm.data import hub
from lm.data.options import DataOptions
from lm.data.prepare import Prepared, prepare
from lm.data.workers import Progress
from lm.errors import UserError

CARD = """---
configs:
- config_name: plain
  default: true
  data_files:
  - {split: train, path: "plain/train-*.parquet"}
  - {split: test, path: "plain/test-*.parquet"}
- config_name: pairs
  data_files: [{split: train, path: pairs.parquet}]
---
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the Hub would hold it: two configurations, two splits, two files of one of them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    root = tmp_path / "repository"
    (root / "plain").mkdir(parents=True)
    (root / "README.md").write_text(CARD)
    for name, rows in (("train-0", range(30)), ("train-1", range(30, 50)), ("test-0", range(100, 110))):
        table = pyarrow.table({"text": [f"row {row}" for row in rows], "score": list(rows)})
        pyarrow.parquet.write_table(table, root / "plain" / f"{name}.parquet")
    pairs = [{"instruction": f"question {row}", "output": f"answer {row}"} for row in range(20)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pairs), root / "pairs.parquet")
    return root


def aged(cache: Path) -> Progress:
    """Lets what the Hub said age while text is tokenized."""

    def heard(stage: str, done: int, total: int) -> None:
        for record in cache.glob("hub-*.json"):
            os.utime(record, (0, 0))

    return heard


def prepared_from(
    path: Path | str, cache: Path, hub: dict[str, Any], progress: Progress | None = None, **source: Any
) -> Prepared:
    values = {
        "tokenizer": {"kind": "bytes"},
        "sources": [{"path": str(path), "hub": hub, **source}],
        "sequence_length": 64,
        "shard_bytes": 200,
        "validation": {"fraction": 0},
        "cache_dir": cache,
    }
    return prepare(DataOptions.model_validate(values), progress, processes=1)


def texts(prepared: Prepared) -> list[str]:
    """Of the only source, in stored order."""
    rows = prepared.train.sources[0]
    return [
        prepared.tokenizer.decode(document.tokens.tolist())
        for part in getattr(rows, "parts", [rows])
        for document in part.store.documents()
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_is_read_whole_and_in_order(repository: Path, tmp_path: Path, streaming: bool) -> None:
    prepared = prepared_from(repository, tmp_path / "cache", {"streaming": streaming})
    assert texts(prepared) == [f"row {row}" for row in range(50)]
    assert len(list((tmp_path / "cache").glob("tokens-*/shard-*/manifest.json"))) > 1
    path, row = prepared.train.origin(prepared.train.documents(0)[0])
    assert (path, row > 0) == (str(repository), True)
    chosen = prepared_from(repository, tmp_path / "cache", {"split": "test", "config": "plain", "streaming": streaming})
    assert texts(chosen) == [f"row {row}" for row in range(100, 110)]


def test_records_are_filtered_and_samples_are_samples(repository: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    filtered = prepared_from(repository, cache, {"split": "train[:10]"}, filters={"where": {"score": {"min": 7}}})
    assert texts(filtered) == ["row 7", "row 8", "row 9"]
    samples = prepared_from(repository, cache, {"config": "pairs"}, kind="sft")
    assert samples.manifests[0].documents == 20
    assert samples.manifests[0].targets == sum(len(f"answer {row}") + 1 for row in range(20))


@pytest.mark.parametrize("wrong", [{"config": "palin"}, {"split": "tarin"}])
def test_a_wrong_name_is_said_in_one_line(repository: Path, tmp_path: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"^data\.sources\.0\.path: `datasets` cannot load '.*(palin|tarin)[^\n]*$"):
        prepared_from(repository, tmp_path / "cache", wrong)


def test_a_dataset_of_several_configurations_says_which_there_are(repository: Path, tmp_path: Path) -> None:
    (repository / "README.md").write_text(CARD.replace("  default: true\n", ""))
    with pytest.raises(UserError, match=r"^data\.sources\.0\.path: [^\n]*config default.*'plain', 'pairs'[^\n]*$"):
        prepared_from(repository, tmp_path / "cache", {})


def test_a_hub_that_cannot_be_reached_is_one_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing listens there, so what is raised is what the Hub's own client raises.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^data\.sources\.0\.path: the Hugging Face Hub cannot be [^\n]*hf download"):
        prepared_from("someone/corpus", tmp_path / "cache", {})


def test_tokens_that_are_there_need_no_hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answered(path: str, revision: str | None) -> str:
        asked.append((path, revision))
        return "0123456789" * 4

    load = datasets.load_dataset

    def from_disk(path: str, name: str | None, *, revision: str, **options: Any) -> Any:
        assert (path, revision) == ("someone/corpus", "0123456789" * 4)
        return load(str(repository), name, **options)

    monkeypatch.setattr(hub, "_ask_for_commit", answered)
    monkeypatch.setattr(datasets, "load_dataset", from_disk)
    took_hours = aged(tmp_path / "cache")
    first = prepared_from("someone/corpus", tmp_path / "cache", {"revision": "v1"}, took_hours)
    assert asked == [("someone/corpus", "v1")]
    prepared_from("someone/corpus", tmp_path / "cache", {"revision": "v1"})
    assert len(asked) == 1, "whoever comes when it is tokenized reads the same commit"

    def unreachable(path: str, revision: str | None) -> str:
        raise httpx.ConnectError("no network")

    monkeypatch.setattr(hub, "_ask_for_commit", unreachable)
    monkeypatch.setattr(hub, "_FRESH_SECONDS", 0)
    assert prepared_from("someone/corpus", tmp_path / "cache", {"revision": "v1"}).fingerprint == first.fingerprint
