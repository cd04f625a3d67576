"""Round trips, boundaries that no text can forge, and folders that come back."""

import functools
import json
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.sentencepiece_training import train_sentencepiece
from lm.data.tokenizer_options import (
    BytesOptions,
    EndsOptions,
    HuggingFaceOptions,
    NumbersOptions,
    SentencePieceOptions,
)
from lm.data.tokenizers import (
    BytesTokenizer,
    HuggingFaceTokenizer,
    NumbersTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    declared_vocab_size,
    existing_tokenizer,
    load_tokenizer,
)
from lm.errors import UserError

CODE = Path(logging.__file__).read_text()
# Runs of whitespace, the space mark of SentencePiece, names of control pieces and of byte pieces.
AWKWARD = [
    "\u2581",
    " ",
    "    ",
    "\n",
    "\r\n",
    "\t",
    "\0",
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "\ufeff",
    "\ufb01",
    "e\u0301",
]
any_text = st.one_of(st.text(), st.lists(st.sampled_from(AWKWARD) | st.text(max_size=3)).map("".join))


@functools.cache
def trained(model_type: str = "unigram") -> SentencePieceTokenizer:
    options = SentencePieceOptions.model_validate({"vocab_size": 600, "model_type": model_type})
    return train_sentencepiece(options, [CODE[start : start + 2000] for start in range(0, len(CODE), 2000)])


@pytest.fixture(scope="module")
def hugging_face_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([CODE], trainer)
    tokenizer.enable_truncation(8)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>"},
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@given(text=any_text)
@settings(deadline=None, max_examples=300)
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_sentencepiece_with_byte_fallback_round_trips_any_text(model_type: str, text: str) -> None:
    assert trained(model_type).decode(trained(model_type).encode(text)) == text


@given(text=any_text)
@settings(deadline=None)
def test_bytes_round_trip_any_text(text: str) -> None:
    tokenizer = BytesTokenizer()
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(texts=st.lists(any_text, max_size=5))
@settings(deadline=None, max_examples=50)
@pytest.mark.parametrize("tokenizer", [trained(), BytesTokenizer()], ids=["sentencepiece", "bytes"])
def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer, texts: list[str]) -> None:
    batch = tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in texts]
    assert all(ids.dtype == np.uint32 for ids in batch)


@given(text=any_text)
@settings(deadline=None)
@pytest.mark.parametrize("tokenizer", [trained(), BytesTokenizer()], ids=["sentencepiece", "bytes"])
def test_no_text_forges_a_boundary(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)
    assert all(0 <= id < tokenizer.vocab_size for id in ids)
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == text


def test_indentation_and_line_ends_are_cheap() -> None:
    tokenizer = trained()
    assert len(tokenizer.encode("        ")) == 1
    assert len(tokenizer.encode("):\n")) == 1
    assert len(CODE) / len(tokenizer.encode(CODE)) > 2


def test_a_cut_character_decodes_without_error() -> None:
    assert BytesTokenizer().decode(BytesTokenizer().encode("\u00e4")[:1]) == "\ufffd"


def test_hugging_face_encodes_as_transformers_does_but_text_stays_text(hugging_face_folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(hugging_face_folder)
    ours = HuggingFaceTokenizer(hugging_face_folder)
    text = "def f(x):\n        return 'ä \u2581'  # and much more than the truncation allows"
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.encode_batch([text, ""])[0].tolist() == ours.encode(text)
    assert ours.decode(ours.encode(text)) == text
    assert ours.vocab_size == len(theirs)
    assert ours.eos_id == ours.bos_id == theirs.eos_token_id
    assert ours.eos_id not in ours.encode("<|endoftext|>")
    assert ours.decode(ours.encode("<|endoftext|>")) == "<|endoftext|>"
    assert ours.decode([ours.bos_id]) == ""


@given(numbers=st.lists(st.integers(0, 99)))
@settings(deadline=None)
def test_numbers_are_their_own_ids(numbers: list[int]) -> None:
    tokenizer = NumbersTokenizer(100)
    text = "\n ".join(map(str, numbers))
    assert tokenizer.encode(text) == numbers == tokenizer.encode_batch([text])[0].tolist()
    assert tokenizer.encode(tokenizer.decode([tokenizer.bos_id, *numbers, tokenizer.eos_id])) == numbers


@pytest.mark.parametrize("text", ["1 100", "-1", "one", "1.0", "\u0663"])
def test_what_is_no_number_of_the_model_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="whole numbers from 0 to 99"):
        NumbersTokenizer(100).encode(text)


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes", "huggingface", "numbers"])
def test_a_saved_tokenizer_comes_back(kind: str, tmp_path: Path, hugging_face_folder: Path) -> None:
    made: dict[str, Tokenizer] = {
        "sentencepiece": trained(),
        "bytes": BytesTokenizer(),
        "huggingface": HuggingFaceTokenizer(hugging_face_folder),
        "numbers": NumbersTokenizer(100),
    }
    tokenizer = made[kind]
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    text = "7 99 0" if kind == "numbers" else CODE[:500]
    assert loaded.encode(text) == tokenizer.encode(text)
    assert (loaded.vocab_size, loaded.bos_id, loaded.eos_id) == (
        tokenizer.vocab_size,
        tokenizer.bos_id,
        tokenizer.eos_id,
    )


def test_the_declared_size_is_the_real_one(tmp_path: Path, hugging_face_folder: Path) -> None:
    trained().save(tmp_path)
    existing = SentencePieceOptions(path=tmp_path / "tokenizer.model")
    assert declared_vocab_size(existing) == trained().vocab_size == 600
    assert declared_vocab_size(SentencePieceOptions(vocab_size=600)) == 600
    assert declared_vocab_size(BytesOptions()) == 258
    assert declared_vocab_size(NumbersOptions(size=512)) == NumbersTokenizer(512).vocab_size == 514
    options = HuggingFaceOptions(path=hugging_face_folder)
    assert declared_vocab_size(options) == HuggingFaceTokenizer(hugging_face_folder).vocab_size


def test_a_foreign_sentencepiece_model_keeps_its_own_ways(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CODE.splitlines()),
        model_prefix=str(tmp_path / "foreign"),
        vocab_size=500,
        bos_id=-1,
        minloglevel=2,
    )
    foreign = existing_tokenizer(SentencePieceOptions(path=tmp_path / "foreign.model"))
    assert foreign is not None
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "foreign.model"))
    assert foreign.encode("two \u2581 words") == reference.encode("two \u2581 words")
    assert foreign.bos_id == foreign.eos_id == reference.eos_id()


@pytest.mark.parametrize("kind", ["sentencepiece", "huggingface"])
@pytest.mark.parametrize("content", [None, b"not a tokenizer"])
def test_a_tokenizer_that_cannot_be_read_is_refused_by_name(tmp_path: Path, kind: str, content: bytes | None) -> None:
    path = tmp_path / ("broken.model" if kind == "sentencepiece" else "tokenizer.json")
    if content is not None:
        path.write_bytes(content)
        (tmp_path / "tokenizer_config.json").write_text("{}")
    options = SentencePieceOptions(path=path) if kind == "sentencepiece" else HuggingFaceOptions(path=tmp_path)
    with pytest.raises(UserError, match=r"data\.tokenizer\.path: '.*" + tmp_path.name):
        existing_tokenizer(options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "no JSON"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"eos_token": 5}'),
        ("tokenizer_config.json", '{"eos_token": {"special": true}}'),
    ],
)
def test_a_file_of_another_form_is_named(hugging_face_folder: Path, tmp_path: Path, name: str, content: str) -> None:
    shutil.copytree(hugging_face_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="' holds no readable fast tokenizer: "):
        HuggingFaceTokenizer(tmp_path)


def test_a_tokenizer_without_boundaries_is_refused(hugging_face_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((hugging_face_folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": null}')
    with pytest.raises(UserError, match="neither a bos nor an eos"):
        HuggingFaceTokenizer(tmp_path)


def test_a_tokenizer_encodes_in_another_process_as_in_this_one(chatml_folder: Path) -> None:
    text = "a <|im_end|> that is <s>text</s> \u2581 "
    for tokenizer in (HuggingFaceTokenizer(chatml_folder), trained(), BytesTokenizer()):
        assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == tokenizer.encode(text)


def test_the_options_name_what_stands_around_a_text(chatml_folder: Path, tmp_path: Path) -> None:
    own = HuggingFaceTokenizer(chatml_folder)
    ends = EndsOptions(bos_token="<|endoftext|>", add_eos_token=False)
    chosen = HuggingFaceTokenizer(chatml_folder, ends)
    name = json.loads((chatml_folder / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in name}
    assert own.bos_id == own.eos_id == chosen.eos_id == ids["<|im_end|>"]
    assert chosen.bos_id == ids["<|endoftext|>"]
    assert (own.ends_texts, chosen.ends_texts) == (True, False)
    explicit = HuggingFaceTokenizer(chatml_folder, EndsOptions(bos_token="<|im_end|>", eos_token="<|im_end|>"))
    assert explicit.fingerprint == own.fingerprint != chosen.fingerprint
    chosen.save(tmp_path)
    for again in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(chosen))):
        assert (again.bos_id, again.eos_id, again.ends_texts) == (chosen.bos_id, chosen.eos_id, False)
        assert again.fingerprint == chosen.fingerprint
    model = SentencePieceTokenizer(trained().model, "a model", EndsOptions(bos_token="</s>"))
    assert model.bos_id == model.eos_id == trained().eos_id != trained().bos_id


@pytest.mark.parametrize("token", ["def", "<|nothing|>"])
def test_what_text_may_spell_is_no_boundary(chatml_folder: Path, token: str) -> None:
    for key in ("bos_token", "eos_token"):
        ends = EndsOptions.model_validate({key: token})
        with pytest.raises(UserError, match=rf"^data\.tokenizer\.{key}: '.*' is no control token"):
            HuggingFaceTokenizer(chatml_folder, ends)
        with pytest.raises(UserError, match=rf"^data\.tokenizer\.{key}: '.*' is no control token"):
            SentencePieceTokenizer(trained().model, "a model", ends)
