"""No document that is held out of one source of a run is trained on through another."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from lm.data.options import DataOptions
from lm.data.prepare import Prepared, prepare
from lm.data.rows import PADDING_DOCUMENT
from lm.errors import UserError

TEXTS = ["".join(f"book {number}, line {line}\n" for line in range(number + 2)) for number in range(7)]
BIG = [f"article {number}" for number in range(400)]


def options_for(folder: Path, *sources: dict[str, Any], **changes: Any) -> DataOptions:
    options = {
        "tokenizer": {"kind": "bytes"},
        "sources": sources,
        "sequence_length": 16,
        "validation": {"fraction": 0.05},
        "cache_dir": folder / "cache",
    }
    return DataOptions.model_validate(options | changes)


def written(path: Path, texts: list[str]) -> dict[str, Any]:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {"path": str(path)}


def never(stage: str, done: int, total: int) -> None:
    raise AssertionError(f"nothing should be done, yet: {stage}")


def trained_on(prepared: Prepared) -> list[set[str]]:
    """The documents that each source trains on, from an epoch of its rows."""
    found: list[dict[int, bytes]] = [{} for _ in prepared.train.sources]
    tokens, targets = np.empty((2, prepared.train.sequence_length), dtype=np.int64)
    for rows, texts in zip(prepared.train.sources, found, strict=True):
        for row in range(len(rows)):
            begin = 0
            for piece in rows.fill(row, tokens, targets):
                end = begin + piece.length
                if piece.document != PADDING_DOCUMENT:
                    read = bytes(token for token in tokens[begin:end].tolist() if token < 256)
                    texts[piece.document] = texts.get(piece.document, b"") + read
                begin = end
    return [{text.decode() for text in texts.values()} for texts in found]


def held_out(prepared: Prepared) -> set[str]:
    assert prepared.validation is not None
    return {document.utf8.decode() for store in prepared.validation.stores for document in store.documents()}


@given(
    choices=st.lists(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=5), min_size=2, max_size=3),
    seed=st.integers(0, 20),
    fraction=st.sampled_from([0.01, 0.3, 0.9]),
)
@settings(deadline=None, max_examples=25)
def test_what_is_held_out_is_trained_on_nowhere(choices: list[list[str]], seed: int, fraction: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = [written(folder / f"{number}.jsonl", texts) for number, texts in enumerate(choices)]
        try:
            options = options_for(folder, *sources, validation={"fraction": fraction, "seed": seed})
            prepared = prepare(options, processes=1)
        except UserError as error:
            if not str(error).startswith("data.validation.fraction: "):  # so few that others hold out all of a source
                raise
            reject()
        trained = trained_on(prepared)
        for text in held_out(prepared):
            assert not [other for texts in trained for other in texts if other.endswith(text)]
        for texts, read in zip(choices, trained, strict=True):
            assert all(any(text.startswith(part) for text in texts) for part in read)
            assert read
        again = prepare(options, never)
        assert again.fingerprint == prepared.fingerprint


def test_a_large_source_is_made_again_only_where_it_holds_what_a_small_one_holds_out(tmp_path: Path) -> None:
    novel = "".join(f"line {number}\n" for number in range(100))
    big, small = written(tmp_path / "big.jsonl", [*BIG, novel]), tmp_path / "novel.txt"
    small.write_text(novel)
    alone = prepare(options_for(tmp_path, big, shard_bytes=5000), processes=1)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/tokens-*/shard-*/manifest.json")}
    both = options_for(tmp_path, big, {"path": str(small)}, shard_bytes=5000)
    prepared = prepare(both, processes=1)
    assert {path: path.stat().st_mtime_ns for path in made} == made, "shards of before stay as they were"
    shards = sorted(path.parent.name for path in tmp_path.glob("cache/tokens-*/shard-*/manifest.json"))
    assert len(made) >= 3
    assert len(shards) == len(made) + 2, "one for the novel, and one of the large source once more"
    ends = [text for text in held_out(prepared) if novel.endswith(text)]
    assert len(ends) == 1, "the end of the novel is held out of both and seen once"
    assert prepared.manifests[0].documents == alone.manifests[0].documents
    assert prepare(options_for(tmp_path, big, shard_bytes=5000), never).fingerprint == alone.fingerprint


def test_shards_made_before_they_kept_hashes_are_read_and_compared(tmp_path: Path) -> None:
    novel = "".join(f"line {number}\n" for number in range(100))
    big, small = written(tmp_path / "big.jsonl", [*BIG, novel]), tmp_path / "novel.txt"
    small.write_text(novel)
    both = options_for(tmp_path, big, {"path": str(small)}, shard_bytes=5000)
    fresh = prepare(both.model_copy(update={"cache_dir": tmp_path / "fresh"}), processes=1)
    for source in (big, {"path": str(small)}):
        prepare(options_for(tmp_path, source, shard_bytes=5000), processes=1)
    for manifest in tmp_path.glob("cache/tokens-*/*/manifest.json"):
        files = json.loads(manifest.read_text())["files"]
        if "split.json" in files:
            found = json.loads((manifest.parent / "split.json").read_text())
            old = {"held_out": None, "kept": None, "divided": bool(found["divided"])}
            (manifest.parent / "split.json").write_text(json.dumps(old))
            manifest.write_text(json.dumps({"files": {}}))
        elif files.pop("split_places", None):
            (manifest.parent / "split_places").unlink()
            manifest.write_text(json.dumps({"files": files}))
    assert prepare(both, processes=1).fingerprint == fresh.fingerprint
    assert prepare(both, never).fingerprint == fresh.fingerprint


def test_a_path_named_twice_is_held_out_and_counted_once(tmp_path: Path) -> None:
    big = written(tmp_path / "big.jsonl", BIG)
    once = prepare(options_for(tmp_path, big), processes=1)
    twice = prepare(options_for(tmp_path, {**big, "longest": 0.2, "weight": 3}, big), processes=1)
    assert once.validation is not None
    assert twice.validation is not None
    assert twice.validation.text() == once.validation.text()
    assert twice.validation.num_rows == once.validation.num_rows
    assert twice.validation.unigram_bits_per_byte == once.validation.unigram_bits_per_byte
    assert (twice.statistics, twice.validation_statistics) == (once.statistics, once.validation_statistics)
    assert len(twice.manifests) == 2


def test_what_several_sources_hold_out_is_validated_once(tmp_path: Path) -> None:
    big = written(tmp_path / "big.jsonl", BIG)
    other = written(tmp_path / "other.jsonl", [*BIG[50:200], *(f"letter {number}" for number in range(100))])
    part = {**big, "filters": {"min_characters": 11}}
    texts = {}
    for name, sources in (("big", [big]), ("part", [big, part]), ("other", [big, other]), ("alone", [other])):
        prepared = prepare(options_for(tmp_path, *sources), processes=1)
        assert prepared.validation is not None
        texts[name] = [document.utf8 for store in prepared.validation.stores for document in store.documents()]
        assert prepared.validation.text() == b"".join(texts[name])
        assert prepared.validation_statistics.documents == len(texts[name]) == len(set(texts[name]))
        assert prepare(options_for(tmp_path, *sources), never).fingerprint == prepared.fingerprint
    assert texts["part"] == texts["big"]
    letters = [text for text in texts["alone"] if text.startswith(b"letter")]
    assert texts["other"] == texts["big"] + letters
    assert 0 < len(letters) < len(texts["alone"])
