"""From options to rows: the cache, the split, the mix, and every way it can be refused."""

import json
import logging
import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lm.data.options import DataOptions
from lm.data.prepare import Prepared, prepare
from lm.data.rows import IGNORED
from lm.errors import UserError

fork = multiprocessing.get_context("fork")


def text(number: int) -> str:
    return f"document {number}: " + "the quick brown fox jumps over the lazy dog. " * (1 + number % 5)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:02}.txt").write_text(text(number))
    return folder


def options_for(corpus: Path, **changes: Any) -> DataOptions:
    options = {
        "tokenizer": {"kind": "bytes"},
        "sources": [{"path": str(corpus)}],
        "sequence_length": 32,
        "validation": {"fraction": 0.2},
        "cache_dir": corpus.parent / "cache",
    }
    return DataOptions.model_validate(options | changes)


def never(stage: str, done: int, total: int) -> None:
    raise AssertionError(f"nothing should be done, yet: {stage}")


def held_out(prepared: Prepared) -> bytes:
    assert prepared.validation is not None
    return prepared.validation.text()


def training_text(prepared: Prepared) -> list[str]:
    (store,) = prepared.train.sources[0].stores.parts
    spans = zip(store.offsets[:-1].tolist(), store.offsets[1:].tolist(), strict=True)
    return [prepared.tokenizer.decode(store.tokens[start:stop]) for start, stop in spans]


@pytest.mark.parametrize("tokenizer", [{"kind": "bytes"}, {"kind": "sentencepiece", "vocab_size": 300}])
def test_every_document_is_trained_on_or_held_out(corpus: Path, tokenizer: dict[str, object]) -> None:
    prepared = prepare(options_for(corpus, tokenizer=tokenizer))
    kept = training_text(prepared)
    others = [text(number) for number in range(60) if text(number) not in kept]
    assert 0 < len(others) < 30
    assert held_out(prepared) == "".join(others).encode()
    assert prepared.validation is not None
    assert prepared.validation.num_bytes == len(held_out(prepared)) == prepared.validation_statistics.bytes
    assert prepared.statistics.documents + prepared.validation_statistics.documents == 60


def test_validation_covers_every_held_out_target_once(corpus: Path) -> None:
    prepared = prepare(options_for(corpus))
    assert prepared.validation is not None
    batch = prepared.validation.batches.rows(range(prepared.validation.num_rows))
    targets = batch.targets[batch.targets != IGNORED].tolist()
    assert prepared.tokenizer.decode(targets).encode() == held_out(prepared)
    assert targets.count(prepared.tokenizer.eos_id) == prepared.validation_statistics.documents


def test_a_document_stays_on_its_side_of_the_split_when_others_come_and_go(corpus: Path) -> None:
    before = prepare(options_for(corpus))
    for number in range(30):
        (corpus / f"{number:02}.txt").unlink()
    (corpus / "000.txt").write_text("a new one")
    after = prepare(options_for(corpus))
    assert [kept for kept in training_text(before) if kept in {text(n) for n in range(30, 60)}] == [
        kept for kept in training_text(after) if kept != "a new one"
    ]


def test_another_seed_holds_out_other_documents_and_another_order_seed_the_same(corpus: Path) -> None:
    first = prepare(options_for(corpus))
    assert held_out(first) != held_out(prepare(options_for(corpus, validation={"fraction": 0.2, "seed": 1})))
    assert held_out(first) == held_out(prepare(options_for(corpus, seed=1), never))


def test_held_out_text_is_bounded_and_what_is_beyond_is_not_trained_on(corpus: Path) -> None:
    everything = prepare(options_for(corpus))
    bounded = prepare(options_for(corpus, validation={"fraction": 0.2, "max_bytes": 300}))
    assert 0 < len(held_out(bounded)) <= 300
    assert training_text(bounded) == training_text(everything)


def test_a_bound_that_no_document_meets_is_told_from_the_cache(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_for(corpus, validation={"fraction": 0.2, "max_bytes": 3})
    with pytest.raises(UserError, match="set 57 or more"):
        prepare(options)
    monkeypatch.setattr("lm.data.sources.Source.documents", never)
    with pytest.raises(UserError, match="set 57 or more"):
        prepare(options)


def test_nothing_is_held_out_when_not_wanted(corpus: Path) -> None:
    prepared = prepare(options_for(corpus, validation={"fraction": 0}))
    assert prepared.validation is None
    assert prepared.statistics.documents == 60


def test_the_second_time_comes_from_the_cache_and_is_the_same(corpus: Path) -> None:
    options = options_for(corpus, tokenizer={"kind": "sentencepiece", "vocab_size": 300})
    stages: list[str] = []
    first = prepare(options, lambda stage, done, total: stages.append(stage))
    assert stages[0] == "sampling text for the tokenizer"
    assert stages[-1].startswith(f"tokenizing {corpus}: ")
    second = prepare(options, never)
    assert second.fingerprint == first.fingerprint
    assert torch.equal(second.train.rows(range(9)).tokens, first.train.rows(range(9)).tokens)


def test_row_length_weights_and_order_reuse_the_tokens_but_not_the_fingerprint(corpus: Path) -> None:
    fingerprints = {prepare(options_for(corpus)).fingerprint}
    for change in ({"sequence_length": 16}, {"seed": 5}, {"sources": [{"path": str(corpus), "weight": 2}]}):
        fingerprints.add(prepare(options_for(corpus, **change), never).fingerprint)
    assert len(fingerprints) == 4


def test_the_fingerprint_does_not_depend_on_place_or_time(corpus: Path) -> None:
    before = prepare(options_for(corpus)).fingerprint
    moved = corpus.rename(corpus.parent / "moved")
    for path in moved.iterdir():
        os.utime(path, (1, 1))
    assert prepare(options_for(moved)).fingerprint == before


def test_changed_text_is_tokenized_again(corpus: Path) -> None:
    before = prepare(options_for(corpus)).fingerprint
    (corpus / "00.txt").write_text("entirely new")
    after = prepare(options_for(corpus))
    assert after.fingerprint != before
    assert b"entirely new" in held_out(after) or "entirely new" in training_text(after)


def test_a_damaged_store_is_named_and_tokenized_again(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = prepare(options_for(corpus))
    (tokens,) = (corpus.parent / "cache").glob("tokens-*/shard-*/train/tokens")
    tokens.write_bytes(tokens.read_bytes()[:-4])
    with caplog.at_level(logging.WARNING):
        after = prepare(options_for(corpus))
    assert re.search(r"train/tokens has \d+ bytes instead of \d+", caplog.text)
    assert after.fingerprint == before.fingerprint


def test_sources_share_rows_by_weight(corpus: Path) -> None:
    other = corpus.parent / "other.jsonl"
    other.write_text("\n".join(json.dumps({"body": "z" * 50}) for _ in range(40)))
    sources = [{"path": str(corpus), "weight": 3}, {"path": str(other), "text_field": "body"}]
    prepared = prepare(options_for(corpus, sources=sources, validation={"fraction": 0}))
    z = ord("z")
    rows = [prepared.train.rows([index]).tokens for index in range(400)]
    assert sum(int((row == z).sum()) > 15 for row in rows) == 100


def test_a_stage_has_rows_of_its_own_length_mix_and_order(corpus: Path) -> None:
    other = corpus.parent / "other.jsonl"
    other.write_text("\n".join(json.dumps({"text": "z" * 50}) for _ in range(40)))
    options = options_for(corpus, sources=[{"path": str(corpus)}, {"path": str(other)}], validation={"fraction": 0})
    prepared = prepare(options)
    own, same = prepared.train.rows(range(20)), prepared.stage(0, 32, None).rows(range(20))
    assert torch.equal(own.tokens, same.tokens)
    assert not torch.equal(own.tokens, prepared.stage(1, 32, None).rows(range(20)).tokens)
    longer = prepared.stage(1, 48, [0, 1])
    assert longer.rows([3]).tokens.shape == (1, 48)
    assert {span.source for row in range(30) for span in longer.documents(row)} == {1}
    for wrong in ([1], [0, 0], [-1, 2]):
        with pytest.raises(UserError, match=r"weights: given"):
            prepared.stage(1, 32, wrong)


def prepare_and_die_at(stage_of_death: str, options: DataOptions) -> None:
    def die(stage: str, done: int, total: int) -> None:
        if stage.startswith(stage_of_death):
            os.kill(os.getpid(), signal.SIGKILL)

    prepare(options, die)


@pytest.mark.parametrize("stage", ["sampling", "training", "tokenizing"])
def test_killed_while_preparing_nothing_half_done_is_believed(corpus: Path, stage: str) -> None:
    options = options_for(corpus, tokenizer={"kind": "sentencepiece", "vocab_size": 300})
    process = fork.Process(target=prepare_and_die_at, args=(stage, options))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    undisturbed = options.model_copy(update={"cache_dir": corpus.parent / "undisturbed"})
    assert prepare(options).fingerprint == prepare(undisturbed).fingerprint
    assert not list(options.cache_dir.glob(".*"))


def test_unreadable_files_are_counted_in_one_warning(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("bad.txt", "worse.md"):
        (corpus / name).write_bytes(b"\xfe\xfe")
    with caplog.at_level(logging.WARNING):
        prepare(options_for(corpus))
    (record,) = caplog.records
    assert "skipped 2 unreadable" in record.message
    assert "bad.txt" in record.message


def test_ignored_files_are_counted_once(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    (corpus / "page.html").write_text("<p>")
    with caplog.at_level(logging.WARNING):
        prepare(options_for(corpus))
        prepare(options_for(corpus))
    (record,) = caplog.records
    assert record.message.endswith("60 files (1 ignored: .html).")


def no_text(corpus: Path) -> DataOptions:
    (corpus / "empty.txt").write_text("")
    return options_for(corpus, sources=[{"path": str(corpus / "empty.txt")}])


def binary(corpus: Path) -> DataOptions:
    (corpus / "binary.txt").write_bytes(b"ab\x80")
    return options_for(corpus, sources=[{"path": str(corpus)}, {"path": str(corpus / "binary.txt")}])


def no_text_for_a_tokenizer(corpus: Path) -> DataOptions:
    return no_text(corpus).model_copy(
        update={"tokenizer": options_for(corpus, tokenizer={"kind": "sentencepiece", "vocab_size": 300}).tokenizer}
    )


def too_little_room_for_validation(corpus: Path) -> DataOptions:
    return options_for(corpus, validation={"fraction": 0.2, "max_bytes": 3})


def equal_documents(corpus: Path) -> DataOptions:
    (corpus / "equal.jsonl").write_text('{"text": "x"}\n' * 3)
    return options_for(corpus, sources=[{"path": str(corpus / "equal.jsonl")}])


def unwritable_cache(corpus: Path) -> DataOptions:
    return options_for(corpus, cache_dir=corpus / "00.txt" / "cache")


def too_many_pieces(corpus: Path) -> DataOptions:
    return options_for(corpus, tokenizer={"kind": "sentencepiece", "vocab_size": 30_000})


def missing_source(corpus: Path) -> DataOptions:
    return options_for(corpus, sources=[{"path": str(corpus)}, {"path": str(corpus / "none.txt")}])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (no_text, r"data\.sources\.0\.path: .*empty\.txt' holds no readable text"),
        (no_text_for_a_tokenizer, r"data\.sources\.0\.path: .*empty\.txt' holds no readable text"),
        (binary, r"data\.sources\.1\.path: .*binary\.txt' cannot be read at byte 2: not UTF-8"),
        (too_little_room_for_validation, r"data\.validation\.max_bytes: 3 is less than .* set 57 or more"),
        (equal_documents, r"data\.validation\.fraction: 0\.2 holds out all of data\.sources\.0.*fraction=0"),
        (unwritable_cache, r"data\.cache_dir: .*cannot be written"),
        (too_many_pieces, r"data\.tokenizer\.vocab_size: 30000 pieces cannot be found"),
        (missing_source, r"data\.sources\.1\.path: .*none\.txt' does not exist"),
    ],
)
def test_what_cannot_work_is_refused_by_key(corpus: Path, broken: Callable[[Path], DataOptions], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(broken(corpus))


@pytest.mark.parametrize("tokenizer", [{"kind": "bytes"}, {"kind": "sentencepiece", "vocab_size": 300}])
def test_a_text_may_be_left_without_an_end(corpus: Path, tokenizer: dict[str, object]) -> None:
    def summary_of(prepared: Prepared) -> dict[str, Any]:
        folder = prepared.train.sources[0].stores.parts[0].folder
        return json.loads((folder.parents[1] / "assembled" / "summary.json").read_text())

    ended = prepare(options_for(corpus, tokenizer=tokenizer))
    stages: list[str] = []
    options = options_for(corpus, tokenizer={**tokenizer, "add_eos_token": False})
    open_ended = prepare(options, lambda stage, done, total: stages.append(stage))
    assert not [stage for stage in stages if "tokenizer" in stage], "the tokenizer itself is the same"
    assert open_ended.fingerprint != ended.fingerprint
    assert open_ended.parts["data.tokenizer"] != ended.parts["data.tokenizer"]
    assert training_text(open_ended) == training_text(ended)
    tokens, documents = open_ended.statistics.tokens, ended.statistics.documents
    assert tokens == open_ended.statistics.targets + documents == ended.statistics.tokens - documents
    assert open_ended.manifests[0].bytes_per_token == ended.manifests[0].bytes_per_token
    eos, bos = ended.tokenizer.eos_id, ended.tokenizer.bos_id
    assert eos not in open_ended.train.sources[0].stores.parts[0].tokens
    recorded = [summary_of(prepared)["tokenizer"] for prepared in (ended, open_ended)]
    assert [policy["document_begins_with"] for policy in recorded] == [bos, bos]
    assert [policy["document_ends_with"] for policy in recorded] == [eos, None]
