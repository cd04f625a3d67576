"""Both sides of the split get text, however small the source, and nothing is lost or said twice."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm.data.options import DataOptions, SourceOptions, ValidationOptions
from lm.data.prepare import prepare
from lm.data.sources import find_source
from lm.data.split import Split


def sides(path: Path, validation: ValidationOptions) -> tuple[list[str], list[str]]:
    source = find_source(SourceOptions(path=str(path)), "data.sources.0")
    split = Split.of(source, validation)
    parts = [part for document in source.documents() for part in split.parts(document, split.place(document))]
    return [part.text for part, out in parts if not out], [part.text for part, out in parts if out]


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=9, unique=True),
    fraction=st.floats(1e-9, 0.999999),
    seed=st.integers(0, 9),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_two_documents_or_more_are_on_both_sides_whole(
    tmp_path: Path, texts: list[str], fraction: float, seed: int
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    kept, held_out = sides(path, ValidationOptions(fraction=fraction, seed=seed))
    assert kept
    assert held_out
    assert sorted(kept + held_out) == sorted(texts)


@given(
    text=st.text(st.sampled_from("aé☃\n\r "), min_size=2),
    fraction=st.floats(1e-9, 0.999999),
    max_bytes=st.none() | st.integers(4, 40),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_single_document_is_cut_in_two(tmp_path: Path, text: str, fraction: float, max_bytes: int | None) -> None:
    path = tmp_path / "input.txt"
    path.write_bytes(text.encode())
    kept, held_out = sides(path, ValidationOptions(fraction=fraction, max_bytes=max_bytes))
    assert "".join(kept + held_out) == text
    assert kept
    assert held_out
    assert max_bytes is None or sum(len(part.encode()) for part in held_out) <= max_bytes


def test_the_cut_is_at_a_line_break(tmp_path: Path) -> None:
    path = tmp_path / "input.txt"
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    (kept,), (held_out,) = sides(path, ValidationOptions(fraction=0.1))
    assert kept.endswith("\n")
    assert held_out.startswith("line 9")
    assert len(held_out) == pytest.approx(0.1 * (len(kept) + len(held_out)), rel=0.01)


def test_a_first_try_on_one_file_has_bits_per_byte(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("To be, or not to be\n" * 200)
    prepared = prepare(
        DataOptions.model_validate(
            {
                "tokenizer": {"kind": "sentencepiece", "vocab_size": 270},
                "sources": [{"path": str(tmp_path / "input.txt")}],
                "sequence_length": 16,
                "cache_dir": tmp_path / "cache",
            }
        )
    )
    assert prepared.validation is not None
    assert prepared.validation.text() == b"To be, or not to be\n" * 2
    assert (prepared.statistics.documents, prepared.validation_statistics.documents) == (1, 1)


def test_what_chance_divides_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": str(number)}) for number in range(500)))
    source = find_source(SourceOptions(path=str(path)), "data.sources.0")
    assert Split.of(source, ValidationOptions(fraction=0.1)) == Split(ValidationOptions(fraction=0.1))
