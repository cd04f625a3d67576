from __future__ import annotations

import functools
import io
import json
import sysconfig
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lm.data.sentencepiece_training import train_sentencepiece
from lm.data.tokenizer_options import SentencePieceOptions
from lm.data.tokenizers import (
    BytesTokenizer,
    HuggingFaceTokenizer,
    NumbersTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
)
from lm.errors import UserError
from lm.hf.tokenizer import save_fast_tokenizer

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
KINDS = ["unigram", "bpe", "few letters", "no bytes", "bytes"]


@functools.cache
def library() -> list[str]:
    """Files of the standard library, the longest ones included: rounding of sums shows only in long texts."""
    paths = sorted(LIBRARY.glob("*.py"), key=lambda path: -path.stat().st_size)
    return [path.read_text() for path in (*paths[:8], *paths[8::8])]


@functools.cache
def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "bytes":
        return BytesTokenizer()
    passages = [text[at : at + 2000] for text in library() for at in range(0, len(text), 8000)]
    if kind == "few letters":
        passages = ["".join(letter for letter in text if letter in "abcdef x(\n") for text in passages]
    return train_sentencepiece(
        SentencePieceOptions(
            vocab_size={"few letters": 400, "no bytes": 800}.get(kind, 1500),
            model_type="bpe" if kind == "bpe" else "unigram",
            byte_fallback=kind != "no bytes",
        ),
        passages,
    )


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_fast_tokenizer(tokenizer_of(request.param), folder, max_length=512)
    return tokenizer_of(request.param), AutoTokenizer.from_pretrained(folder)


def spells_all(ours: Tokenizer) -> bool:
    return isinstance(ours, BytesTokenizer) or ours.processor.is_byte(ours.processor.piece_to_id("<0x41>"))


def test_ids_are_equal_and_library_files_round_trip(pair) -> None:
    ours, fast = pair
    for text in library():
        ids = fast(text, verbose=False).input_ids
        assert ids == [ours.bos_id, *ours.encode(text)]
        assert spells_all(ours) <= (fast.decode(ids, skip_special_tokens=True) == text)


AWKWARD = st.sampled_from(
    [
        "</s>",
        "<s>",
        "<unk>",
        "<0x41>",
        "<0xE2>",
        "\u2581",
        "  ",
        "        ",
        "\r\n",
        "\x00",
        "e\u0301",
        "====",
        "\U0001f600",
    ]
)
TEXT = st.lists(AWKWARD | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=12).map("".join)


def test_ids_are_equal_for_any_text(pair) -> None:
    ours, fast = pair

    @settings(deadline=None, max_examples=150)
    @given(TEXT)
    def check(text: str) -> None:
        ids = fast(text).input_ids
        assert ids == [ours.bos_id, *ours.encode(text)]
        assert spells_all(ours) <= (fast.decode(ids, skip_special_tokens=True) == text)

    check()


def test_special_tokens_and_padding(pair) -> None:
    ours, fast = pair
    assert (fast.bos_token_id, fast.eos_token_id, fast.pad_token_id) == (ours.bos_id, ours.eos_id, ours.eos_id)
    assert len(fast) == ours.vocab_size
    assert fast.model_max_length == 512
    batch = fast(["a", "a and b"], padding=True)
    assert list(batch) == ["input_ids", "attention_mask"]
    assert batch.attention_mask[0][0] == 0
    assert batch.attention_mask[0][-1] == 1
    assert fast("a", add_special_tokens=False).input_ids == ours.encode("a")


def test_a_hugging_face_folder_is_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    save_fast_tokenizer(tokenizer_of("bpe"), source, max_length=64)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "model.safetensors").write_text("not a tokenizer's")
    save_fast_tokenizer(HuggingFaceTokenizer(source), target, max_length=512)
    copied = {path.name: path.read_bytes() for path in target.iterdir()}
    assert copied.keys() == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert all((source / name).read_bytes() == content for name, content in copied.items())
    assert json.loads(copied["tokenizer_config.json"])["model_max_length"] == 64


@pytest.mark.parametrize(
    "setting", [{"add_dummy_prefix": True}, {"normalization_rule_name": "nfkc"}, {"model_type": "char"}]
)
def test_a_model_that_rewrites_text_is_refused(tmp_path: Path, setting: dict[str, object]) -> None:
    model = io.BytesIO()
    plain = {"add_dummy_prefix": False, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(library()[20].splitlines()),
        model_writer=model,
        vocab_size=400 if "model_type" not in setting else 310,
        byte_fallback=True,
        minloglevel=2,
        **plain | setting,
    )
    with pytest.raises(UserError, match="SentencePiece"):
        save_fast_tokenizer(SentencePieceTokenizer(model.getvalue(), "test"), tmp_path, max_length=64)


def test_numbers_are_read_and_written_alike(tmp_path) -> None:
    ours = NumbersTokenizer(512)
    save_fast_tokenizer(ours, tmp_path, max_length=64)
    fast = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("", "7", "0 511  13\n511"):
        ids = fast(text).input_ids
        assert ids == [ours.bos_id, *ours.encode(text)]
        assert fast.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    assert len(fast) == ours.vocab_size == 514
