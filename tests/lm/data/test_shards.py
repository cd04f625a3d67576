"""Preparing in many processes and on many nodes: nothing twice, nothing lost, the same tokens whoever made them."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm.data import duplicates
from lm.data.batches import Batches
from lm.data.options import DataOptions
from lm.data.order import ShuffledOrder
from lm.data.prepare import prepare, prepare_node
from lm.data.rows import rows_of
from lm.data.sources import find_source
from lm.data.store import TokenStore
from lm.errors import UserError

fork = multiprocessing.get_context("fork")
SHARD_BYTES = 30_000


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    texts = (f"document {number}: " + f"the quick brown fox {number % 7} " * (number % 50) for number in range(1000))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def options_for(corpus: Path, cache: str = "cache", **changes: Any) -> DataOptions:
    options = {
        "tokenizer": {"kind": "bytes"},
        "sources": [{"path": str(corpus)}],
        "sequence_length": 64,
        "validation": {"fraction": 0.1},
        "shard_bytes": SHARD_BYTES,
        "cache_dir": corpus.parent / cache,
    }
    return DataOptions.model_validate(options | changes)


def never(stage: str, done: int, total: int) -> None:
    raise AssertionError(f"nothing should be done, yet: {stage}")


def finished(cache: Path) -> dict[str, int]:
    """When each finished shard was made."""
    return {path.parent.name: path.stat().st_mtime_ns for path in cache.glob("tokens-*/shard-*/manifest.json")}


def test_killed_twice_nothing_is_tokenized_twice_and_nothing_is_lost(corpus: Path) -> None:
    options, cache = options_for(corpus), corpus.parent / "cache"
    before: dict[str, int] = {}
    for _ in range(2):
        process = fork.Process(target=prepare, args=(options, None, 2))
        process.start()
        while len(finished(cache)) < len(before) + 2 and process.is_alive():
            time.sleep(0.001)
        process.kill()
        process.join()
        time.sleep(0.5)  # the workers finish what they hold
        made = finished(cache)
        assert before.items() <= made.items(), "a finished shard was made again"
        before = made
    total = len(find_source(options.sources[0], "", SHARD_BYTES).shards)
    assert 4 <= len(before) < total
    prepared = prepare(options, processes=2)
    assert before.items() <= finished(cache).items()
    undisturbed = prepare(options_for(corpus, "undisturbed"), processes=1)
    assert prepared.fingerprint == undisturbed.fingerprint
    assert prepared.manifests == undisturbed.manifests
    assert prepared.manifests[0].documents + prepared.manifests[0].held_out == 1000
    assert sum(prepared.manifests[0].lengths) == prepared.manifests[0].documents
    prepare(options, never)


def test_nodes_make_disjoint_shards_and_any_of_them_puts_them_together(corpus: Path) -> None:
    options = options_for(corpus)
    total = len(find_source(options.sources[0], "", SHARD_BYTES).shards)
    for node in (1, 2, 3):
        ((_, there, wanted),) = prepare_node(options, (node, 3), processes=1)
        assert wanted == total
        assert there == sum(len(range(first, total, 3)) for first in range(node))
    prepared = prepare(options, lambda stage, done, total: pytest.fail("made again") if "tokenizing" in stage else None)
    assert prepared.fingerprint == prepare(options_for(corpus, "alone"), processes=1).fingerprint
    summary = json.loads(next((corpus.parent / "cache").glob("tokens-*/assembled/summary.json")).read_text())
    assert summary["shards"] == total
    assert summary["tokenizer"]["document_begins_with"] == 256
    assert summary["unknown_rate"] == 0


def test_a_run_begins_on_the_first_shards_while_others_are_made(corpus: Path) -> None:
    first = prepare(options_for(corpus, shards=3), processes=1)
    made = finished(corpus.parent / "cache")
    assert sorted(made) == ["shard-00000", "shard-00001", "shard-00002"]
    whole = prepare(options_for(corpus), processes=1)
    assert made.items() <= finished(corpus.parent / "cache").items()
    again = prepare(options_for(corpus, shards=3), never)
    assert again.fingerprint == first.fingerprint != whole.fingerprint
    assert np.array_equal(again.train.rows([5]).tokens, first.train.rows([5]).tokens)
    assert first.manifests[0].documents < whole.manifests[0].documents


def test_first_shards_without_text_on_either_side_are_refused_for_that(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"book {number} " * 500)
    sides = set()
    for seed in range(12):
        options = options_for(folder, validation={"seed": seed}, shard_bytes=1000)
        whole, first = prepare(options, processes=1), options.model_copy(update={"shards": 1})
        assert whole.validation is not None
        assert (whole.manifests[0].documents, whole.manifests[0].held_out) == (5, 1)
        held_out = b"book 0 " in whole.validation.text()
        sides.add(held_out)
        if held_out:
            with pytest.raises(UserError, match=r"^train\.stages: shards 1: of the first 1 of 6 shards of data"):
                whole.stage(1, 64, None, 1)
            with pytest.raises(UserError, match=r"^data\.shards: of the first 1 of 6 .* trained on: 1 held out\. Read"):
                prepare(first, processes=1)
        else:
            assert len(whole.stage(1, 64, None, 1).sources[0])
            with pytest.raises(UserError, match=r"^data\.shards: 1: nothing is held out of the first shards"):
                prepare(first, processes=1)
    assert sides == {True, False}


def test_the_same_rows_come_from_one_shard_and_held_out_text_is_bounded_over_all(corpus: Path) -> None:
    many = prepare(options_for(corpus, validation={"fraction": 0.1, "max_bytes": 3000}), processes=1)
    one = prepare(
        options_for(corpus, "one", shard_bytes=10**9, validation={"fraction": 0.1, "max_bytes": 3000}), processes=1
    )
    assert many.validation is not None
    assert one.validation is not None
    assert many.validation.text() == one.validation.text()
    assert 2500 < many.validation.num_bytes <= 3000
    assert many.manifests == one.manifests
    texts = [
        [store.tokens[begin:end].tolist() for begin, end in zip(store.offsets[:-1], store.offsets[1:], strict=True)]
        for store in many.train.sources[0].stores.parts
    ]
    (store,) = one.train.sources[0].stores.parts
    assert [document for shard in texts for document in shard] == [
        store.tokens[begin:end].tolist() for begin, end in zip(store.offsets[:-1], store.offsets[1:], strict=True)
    ]


def test_a_document_is_named_by_its_file_and_byte(corpus: Path) -> None:
    prepared = prepare(options_for(corpus, validation={"fraction": 0}), processes=1)
    content = corpus.read_bytes()
    for row in (0, 7, 100):
        for span in prepared.train.documents(row):
            path, byte = prepared.train.origin(span)
            assert path == str(corpus)
            text = json.loads(content[byte : content.index(b"\n", byte)])["text"]
            read = prepared.train.rows([row]).tokens[0, span.begin : span.end].tolist()
            assert [256, *text.encode(), 257][span.offset : span.offset + len(read)] == read


def test_exact_duplicates_are_dropped_wherever_they_stand(corpus: Path) -> None:
    once = prepare(options_for(corpus), processes=1)
    doubled = corpus.parent / "doubled.jsonl"
    lines = corpus.read_text().splitlines(keepends=True)
    doubled.write_text("".join(lines) + "".join(lines[5:400]) + lines[0])
    source = {"path": str(doubled), "drop_duplicates": True}
    dropped = prepare(options_for(corpus, sources=[source]), processes=1)
    assert dropped.manifests[0].duplicates == 396
    assert dropped.manifests[0].documents == once.manifests[0].documents
    assert dropped.validation is not None
    assert once.validation is not None
    assert dropped.validation.text() == once.validation.text()
    first, other = once.train.sources[0], dropped.train.sources[0]
    tokens = [[token for store in rows.stores.parts for token in store.tokens.tolist()] for rows in (first, other)]
    assert tokens[0] == tokens[1]
    prepare(options_for(corpus, sources=[source]), never)


@pytest.mark.parametrize("at_once", [20_000_000, 100])
def test_what_an_earlier_source_holds_is_dropped_where_that_is_asked_for(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(duplicates, "_AT_ONCE", at_once)
    lines = corpus.read_text().splitlines(keepends=True)
    other = corpus.parent / "other.jsonl"
    fresh = [json.dumps({"text": f"fresh {number}"}) + "\n" for number in range(300)]
    other.write_text("".join([*lines[100:400], *fresh, *fresh[:50]]))
    first, second = {"path": str(corpus)}, {"path": str(other), "drop_duplicates": "across"}
    options = options_for(corpus, sources=[first, second], validation={"fraction": 0})
    prepared = prepare(options, processes=1)
    assert [made.duplicates for made in prepared.manifests] == [0, 350]
    assert [made.documents for made in prepared.manifests] == [1000, 300]
    stores = prepared.train.sources[1].stores
    kept = [prepared.tokenizer.decode(document.tokens) for store in stores.parts for document in store.documents()]
    assert kept == [f"fresh {number}" for number in range(300)]
    prepare(options, never)
    within = prepare(options_for(corpus, sources=[first, {**second, "drop_duplicates": True}]), processes=1)
    assert within.manifests[1].duplicates == 50
    assert len(list((corpus.parent / "cache").glob("hashes-*"))) == 2, "a text is hashed once"
    same = options_for(corpus, sources=[first, {**first, "drop_duplicates": "across", "longest": 0.2}])
    assert prepare(same, processes=1).manifests[1].duplicates == 0, "a text that is named twice is one text"
    nothing = options_for(corpus, sources=[first, {**first, "template": "{text}", "drop_duplicates": "across"}])
    with pytest.raises(UserError, match=r"^data\.sources\.1\.drop_duplicates: sources before it hold every text"):
        prepare(nothing, processes=1)


def test_a_billion_documents_cost_no_memory_and_no_time(tmp_path: Path) -> None:
    shards, documents, length = 1000, 1_000_000, 1000
    first = tmp_path / "first"
    first.mkdir()
    np.arange(0, (documents + 1) * length, length).tofile(first / "offsets")
    for name, size in (("tokens", 4 * documents * length), ("document_bytes", 8 * documents), ("targets", 0)):
        with (first / name).open("wb") as file:
            file.truncate(size)  # sparse: four terabytes of tokens in all
    before, begin = resident(), time.process_time()
    rows = rows_of([TokenStore(first)] * shards, 4096)
    batches = Batches([rows], ShuffledOrder([len(rows)], [1], 7))
    assert batches.rows(range(10**9, 10**9 + 8)).tokens.shape == (8, 4096)
    assert rows.num_documents == 10**9
    assert time.process_time() - begin < 1
    assert resident() - before < 100_000_000


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
