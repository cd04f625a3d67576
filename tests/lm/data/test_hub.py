"""Datasets of the Hub: from folders laid out as one, and what is said and done where the Hub cannot be reached."""

import contextlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import httpx
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from lm.data import hub
from lm.data.options import ChatOptions, DataOptions, SourceOptions
from lm.data.prepare import Prepared, prepare
from lm.data.source_options import HubOptions
from lm.data.sources import find_source
from lm.data.workers import Progress
from lm.errors import UserError

COMMIT = "0123456789" * 4
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
    path: Path | str,
    cache: Path,
    hub: dict[str, Any],
    progress: Progress | None = None,
    processes: int = 1,
    **source: Any,
) -> Prepared:
    values = {
        "tokenizer": {"kind": "bytes"},
        "sources": [{"path": str(path), "hub": hub, **source}],
        "sequence_length": 64,
        "shard_bytes": 200,
        "validation": {"fraction": 0},
        "cache_dir": cache,
    }
    return prepare(DataOptions.model_validate(values), progress, processes)


def texts(prepared: Prepared) -> list[str]:
    """Of the only source, in stored order."""
    return [
        prepared.tokenizer.decode(document.tokens.tolist())
        for store in prepared.train.sources[0].stores.parts
        for document in store.documents()
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


@pytest.fixture
def on_the_hub(repository: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Lets someone/corpus be the repository, at one commit; and what was asked of the Hub."""
    asked: list[tuple[str, str | None]] = []
    load = datasets.load_dataset_builder

    def answered(path: str, revision: str | None) -> str:
        asked.append((path, revision))
        return COMMIT

    def from_disk(path: str, name: str | None, *, revision: str) -> Any:
        assert (path, revision) == ("someone/corpus", COMMIT)
        builder = load(str(repository), name)
        builder.hash = COMMIT
        builder._cache_dir = builder._output_dir = builder._build_cache_dir()
        return builder

    monkeypatch.setattr(hub, "_ask_for_commit", answered)
    monkeypatch.setattr(datasets, "load_dataset_builder", from_disk)
    return asked


def unreachable(*_: object, **__: object) -> Any:
    raise httpx.ConnectError("no network")


@pytest.mark.parametrize("streaming", [False, True])
def test_tokens_that_are_there_need_no_hub(
    on_the_hub: list[tuple[str, str | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    chosen = {"revision": "v1", "streaming": streaming}
    first = prepared_from("someone/corpus", tmp_path / "cache", chosen, aged(tmp_path / "cache"))
    assert on_the_hub == [("someone/corpus", "v1")]
    prepared_from("someone/corpus", tmp_path / "cache", chosen)
    assert len(on_the_hub) == 1, "whoever comes when it is tokenized reads the same commit"
    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    monkeypatch.setattr(hub, "_ask_for_commit", unreachable)
    monkeypatch.setattr(hub, "_FRESH_SECONDS", 0)
    again = prepared_from("someone/corpus", tmp_path / "cache", chosen)
    assert (again.fingerprint, texts(again)) == (first.fingerprint, texts(first))
    with pytest.raises(UserError, match="the Hugging Face Hub cannot be reached"):
        prepared_from("someone/corpus", tmp_path / "cache", chosen | {"split": "test"})


def test_processes_that_go_on_share_one_dataset(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared_from(repository, tmp_path / "cache", {})
    parent, load, loaded = os.getpid(), datasets.load_dataset_builder, []

    def load_here(*arguments: Any, **options: Any) -> Any:
        loaded.append(os.getpid())
        assert loaded == [parent]
        return load(*arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset_builder", load_here)
    for number in (0, 1):
        shutil.rmtree(next((tmp_path / "cache").glob(f"tokens-*/shard-0000{number}")))
    assert texts(prepared_from(repository, tmp_path / "cache", {}, processes=2)) == texts(first)
    assert loaded == [parent]


def test_a_cache_that_another_user_made_is_read(
    on_the_hub: list[tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with shared_folder() as cache:
        first = prepared_from("someone/corpus", cache, {})
        monkeypatch.setattr(hub, "_FRESH_SECONDS", 0)
        monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
        with read_only(cache):
            assert prepared_from("someone/corpus", cache, {}).fingerprint == first.fingerprint
            assert not caplog.records
            monkeypatch.setattr(hub, "_ask_for_commit", lambda path, revision: "f" * 40)
            assert prepared_from("someone/corpus", cache, {}).fingerprint == first.fingerprint
            assert f"data.cache_dir cannot be written; going on with commit {COMMIT}" in caplog.text
            with pytest.raises(UserError, match=r"^data\.cache_dir: .* cannot be written: Permission denied"):
                prepared_from("someone/corpus", cache, {"revision": "other"})


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """One whose parents any user may enter, which those of tmp_path are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "cache"


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """As it is to a user who may only read it; root is made another user for that."""
    folders = [folder, *filter(Path.is_dir, folder.rglob("*"))]
    user = os.geteuid()
    try:
        for one in folders:
            one.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        for one in folders:
            one.chmod(0o755)


@pytest.fixture
def offline(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `datasets`, which may not ask the Hub, keeps its copies of someone/corpus; folders below are commits."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    builder = datasets.load_dataset_builder(str(repository))
    builder.download_and_prepare()
    copies = tmp_path / "datasets" / "someone___corpus" / "plain" / "0.0.0"
    shutil.copytree(builder.cache_dir, copies / COMMIT)
    described = copies / COMMIT / "dataset_info.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"dataset_name": "corpus"}))
    for file in (copies / COMMIT).glob("repository-*"):
        file.rename(file.with_name(file.name.replace("repository", "corpus")))
    return copies


@pytest.mark.parametrize("streaming", [False, True])
def test_another_commit_than_the_one_asked_for_is_not_taken(offline: Path, tmp_path: Path, streaming: bool) -> None:
    chosen = {"config": "plain", "revision": COMMIT, "streaming": streaming}
    assert len(texts(prepared_from("someone/corpus", tmp_path / "cache", chosen))) == 50
    other = "b" * 40
    with pytest.raises(
        UserError, match=rf"as of commit {other}.*{COMMIT}'.*data\.sources\.0\.hub\.revision to {COMMIT}"
    ):
        prepared_from("someone/corpus", tmp_path / "cache", chosen | {"revision": other})
    with pytest.raises(UserError, match=r"^data\.sources\.0\.hub\.config: .*default.* a copy of plain"):
        prepared_from("someone/corpus", tmp_path / "cache", {"revision": COMMIT, "streaming": streaming})


def test_a_saved_dataset_is_read_as_the_files_that_it_is(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"^data\.sources\.0\.hub: .*save_to_disk.*saved/\*\.arrow") as raised:
        prepared_from(tmp_path / "saved", tmp_path / "cache", {})
    path = str(raised.value).split("'")[3]
    assert find_source(SourceOptions(path=path), "data.sources.0").files


@pytest.mark.parametrize("streaming", [False, True])
def test_messages_may_differ_in_their_fields(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "corpus").mkdir()
    asked = [{"role": "user", "content": "x"}, {"role": "user", "content": "y", "name": "me"}]
    records = [{"messages": [one, {"role": "assistant", "content": "yes"}]} for one in asked]
    (tmp_path / "corpus" / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    options = ChatOptions(kind="chat", path=str(tmp_path / "corpus"), hub=HubOptions(streaming=streaming))
    source = hub.HubSource("data.sources.0", options, (), False, cache_dir=tmp_path / "cache")
    assert [document.text for document in source.documents()] == ["x\nyes", "y\nyes"]


def test_archives_of_files_are_streamed(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with tarfile.open(tmp_path / "corpus" / "a.tar", "w") as archive:
        for number in range(3):
            for suffix, content in (("txt", b"text %d" % number), ("json", b"{}")):
                entry = tarfile.TarInfo(f"{number}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    prepared = prepared_from(tmp_path / "corpus", tmp_path / "cache", {"streaming": True}, text_field="txt")
    assert texts(prepared) == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize("streaming", [False, True])
def test_text_that_is_none_is_one_bad_record(repository: Path, tmp_path: Path, streaming: bool) -> None:
    column = pyarrow.array([b"row 30", b"\xff\xfe", b"row 32"])
    text = pyarrow.Array.from_buffers(pyarrow.string(), 3, column.buffers())
    table = pyarrow.table({"text": text, "score": [0, 0, 0]})
    pyarrow.parquet.write_table(table, repository / "plain" / "train-1.parquet")
    prepared = prepared_from(repository, tmp_path / "cache", {"streaming": streaming})
    assert texts(prepared) == [f"row {row}" for row in (*range(31), 32)]
    assert prepared.manifests[0].skipped == {"not UTF-8": 1}
    assert ("row 2 of its shard 2" if streaming else "row 32") in prepared.manifests[0].examples[0]
