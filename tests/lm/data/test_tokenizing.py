"""Samples from files to rows: each once, mixed with texts, cached, counted, and refused where they cannot serve."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from lm.data.options import DataOptions
from lm.data.prepare import Prepared, prepare
from lm.data.rows import IGNORED
from lm.errors import UserError

from .conftest import CHATML, save_tokenizer

EOS = 257


def answer(number: int) -> str:
    return f"answer {number}: " + "x" * (number % 7)


def record(number: int) -> dict[str, str]:
    return {"instruction": f"question {number} " + "y" * (number % 5), "output": answer(number)}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "samples.json"
    path.write_text(json.dumps([record(number) for number in range(50)]))
    return path


def options_for(path: Path, source: dict[str, Any] | None = None, **changes: Any) -> DataOptions:
    options = {
        "tokenizer": {"kind": "bytes"},
        "sources": [{"kind": "sft", "path": str(path), **(source or {})}],
        "sequence_length": 100,
        "validation": {"fraction": 0.2},
        "cache_dir": path.parent / "cache",
    }
    return DataOptions.model_validate(options | changes)


def never(stage: str, done: int, total: int) -> None:
    raise AssertionError(f"nothing should be done, yet: {stage}")


def learned(prepared: Prepared, rows: range | None = None) -> list[str]:
    """Every answer in one epoch of the only source (or in some rows), ended by eos."""
    indices = rows or range(prepared.train.order.rows[0])
    targets = prepared.train.rows(indices).targets.flatten()
    return bytes(byte if byte < 256 else 0 for byte in targets[targets != IGNORED].tolist()).decode().split("\0")[:-1]


def test_every_sample_is_an_epochs_once_or_held_out(corpus: Path) -> None:
    prepared = prepare(options_for(corpus))
    assert prepared.validation is not None
    kept = learned(prepared)
    others = [answer(number) for number in range(50) if answer(number) not in kept]
    assert len(kept) == prepared.statistics.documents == len(set(kept))
    assert 0 < len(others) == prepared.validation_statistics.documents == 50 - len(kept)
    assert prepared.validation.text() == "".join(others).encode()
    assert prepared.validation.num_bytes == sum(map(len, others)) == prepared.validation_statistics.bytes
    batch = prepared.validation.batches.rows(range(prepared.validation.num_rows))
    assert int((batch.targets != IGNORED).sum()) == sum(len(text) + 1 for text in others)
    assert prepared.statistics.targets == sum(len(text) + 1 for text in kept)
    assert learned(prepared, range(prepared.train.order.rows[0], 2 * prepared.train.order.rows[0])) != kept
    assert sorted(learned(prepared, range(prepared.train.order.rows[0], 2 * prepared.train.order.rows[0]))) == sorted(
        kept
    )


def test_samples_mix_with_texts_by_weight(corpus: Path) -> None:
    text = corpus.parent / "text.txt"
    text.write_text("z" * 5000)
    sources = [{"path": str(text), "weight": 3}, {"kind": "sft", "path": str(corpus)}]
    prepared = prepare(options_for(corpus, sources=sources, validation={"fraction": 0}))
    rows = prepared.train.rows(range(200)).tokens
    assert int((rows == ord("z")).any(1).sum()) == 150
    assert int((rows == ord("[")).any(1).sum()) == 50
    assert prepared.statistics.targets < prepared.statistics.tokens - prepared.statistics.documents


def test_the_cache_is_for_one_row_length_and_one_template(corpus: Path) -> None:
    first = prepare(options_for(corpus))
    assert prepare(options_for(corpus), never).fingerprint == first.fingerprint
    prepare(options_for(corpus, {"weight": 2}, seed=4), never)
    for changed in (options_for(corpus, sequence_length=101), options_for(corpus, {"template": "Q {prompt} A "})):
        with pytest.raises(AssertionError, match="tokenizing"):
            prepare(changed, never)
        assert prepare(changed).fingerprint != first.fingerprint


def test_what_does_not_fit_is_counted_from_the_cache_too(corpus: Path) -> None:
    records = [record(number) for number in range(50)]
    records[3]["instruction"] = "y" * 300
    records[4]["output"] = "x" * 300
    corpus.write_text(json.dumps(records))
    options = options_for(corpus, validation={"fraction": 0})
    prepared, again = prepare(options), prepare(options, never)
    assert prepared.statistics == again.statistics
    assert (prepared.statistics.cut, prepared.statistics.dropped) == (1, 1)
    assert sorted(learned(prepared)) == sorted(answer(number) for number in range(50) if number != 4)
    with pytest.raises(UserError, match=r"record 5 \(character \d+\): the answers alone take 315 tokens, more "):
        prepare(options_for(corpus, {"too_long": "refuse"}, validation={"fraction": 0}))


def test_a_malformed_record_is_refused_in_a_named_file_and_skipped_in_a_folder(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = corpus.parent / "folder"
    folder.mkdir()
    lines = [json.dumps(record(number)) for number in range(9)]
    lines[2] = json.dumps({"instruction": "x", "output": ""})
    (folder / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"^data\.sources\.0\.path: .*a\.jsonl' .* at line 3 .*output is empty"):
        prepare(options_for(folder / "a.jsonl"))
    with caplog.at_level(logging.WARNING):
        prepared = prepare(options_for(folder))
    assert prepared.statistics.documents + prepared.validation_statistics.documents == 8
    assert "skipped 1 unreadable" in caplog.text


def test_a_tokenizer_is_trained_on_samples(corpus: Path) -> None:
    records = [{"prompt": f"wie {number}", "response": f"\u00e4hnlich {number}"} for number in range(50)]
    corpus.write_text(json.dumps(records))
    prepared = prepare(options_for(corpus, tokenizer={"kind": "sentencepiece", "vocab_size": 279}))
    assert len(prepared.tokenizer.encode("\u00e4w")) == 2, "a letter of an answer and one of a prompt, not their bytes"


def test_conversations_are_made_anew_for_another_chat_template(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    said = [
        [("user", f"question {n}"), ("assistant", answer(n)), ("user", "and?"), ("assistant", "no")] for n in range(9)
    ]
    records = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in said]
    path.write_text("\n".join(map(json.dumps, records)))
    found = []
    for name, template in (("a", CHATML), ("b", CHATML.replace("'role'] }}\n", "'role'] }}\n\n"))):
        tokenizer = {"kind": "huggingface", "path": str(save_tokenizer(tmp_path / name, template))}
        options = options_for(path, {"kind": "chat"}, tokenizer=tokenizer, validation={"fraction": 0})
        found.append(prepare(options))
        assert prepare(options, never).fingerprint == found[-1].fingerprint
    assert found[0].fingerprint != found[1].fingerprint
    assert found[0].statistics.bytes == sum(len(answer(number)) + 2 for number in range(9))


def single(corpus: Path) -> DataOptions:
    corpus.write_text(json.dumps([record(1)]))
    return options_for(corpus)


def all_too_long(corpus: Path) -> DataOptions:
    return options_for(corpus, sequence_length=4)


def held_out_too_long(corpus: Path) -> DataOptions:
    places = [number for number in range(50) if answer(number) not in learned(prepare(options_for(corpus)))]
    corpus.write_text(json.dumps([record(number) for number in range(50) if number not in places[1:]]))
    return options_for(corpus, sequence_length=13 + len(answer(places[0])))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (single, r"^data\.validation\.fraction: data\.sources\.0 is a single sample"),
        (all_too_long, r"^data\.sequence_length: 4 is too short for data\.sources\.0, .*samples\.json'"),
        (held_out_too_long, r"^data\.sequence_length: \d+ is too short for the held-out samples"),
    ],
)
def test_samples_that_cannot_serve_are_refused(corpus: Path, broken: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(broken(corpus))


def test_rows_are_the_same_whoever_asks(corpus: Path) -> None:
    first, second = prepare(options_for(corpus)), prepare(options_for(corpus))
    whole = first.train.rows(range(40, 64))
    for rank in range(3):
        part = second.train.rows(range(40 + rank, 64, 3))
        assert torch.equal(part.tokens, whole.tokens[rank::3])
        assert torch.equal(part.targets, whole.targets[rank::3])
