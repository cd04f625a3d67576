"""The same text trains the same model, and text that cannot is refused with what would help."""

import random
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.readers import Document
from lm.data.sentencepiece_training import sample_passages, train_sentencepiece
from lm.data.tokenizer_options import SentencePieceOptions
from lm.errors import UserError

CODE = Path(textwrap.__file__).read_text()
PASSAGES = [CODE[start : start + 500] for start in range(0, len(CODE), 500)]


def documents(texts: list[str]) -> list[Document]:
    return [Document(text, text.encode()) for text in texts]


@given(texts=st.lists(st.text(min_size=1, max_size=5000), max_size=6), limit=st.integers(1, 8000), seed=st.integers())
@settings(deadline=None, max_examples=50)
def test_a_sample_fits_and_does_not_depend_on_order(texts: list[str], limit: int, seed: int) -> None:
    drawn = sample_passages(documents(texts), limit)
    shuffled = random.Random(seed).sample(texts, len(texts))
    assert drawn == sample_passages(documents(shuffled), limit)
    one, other = (sample_passages(documents(part), limit) for part in (shuffled[::2], shuffled[1::2]))
    assert drawn == one.joined(other, limit) == other.joined(one, limit)
    sample = drawn.passages
    assert len(sample) <= 1 or sum(len(passage.encode()) for passage in sample) <= limit
    assert bool(sample) == bool(texts)


def test_a_sample_is_drawn_evenly() -> None:
    texts = [letter * 500 + str(number) for letter in "abcd" for number in range(400)]
    sample = sample_passages(documents(texts), 400 * 500).passages
    assert sum(map(len, sample)) > 399 * 500
    for letter in "abcd":
        assert 60 < sum(passage.startswith(letter) for passage in sample) < 140


def test_a_sample_with_room_for_all_takes_all() -> None:
    long = "x" * 5000
    assert sorted("".join(sample_passages(documents([long, "y"]), 10_000).passages)) == sorted(long + "y")


def test_training_repeats_itself() -> None:
    options = SentencePieceOptions(vocab_size=400)
    assert train_sentencepiece(options, PASSAGES).fingerprint == train_sentencepiece(options, PASSAGES).fingerprint


def test_digits_are_pieces_of_their_own_unless_asked_otherwise() -> None:
    assert len(train_sentencepiece(SentencePieceOptions(vocab_size=400), PASSAGES).encode("3737")) == 4
    joined = SentencePieceOptions(vocab_size=400, split_digits=False)
    assert len(train_sentencepiece(joined, ["37 3737 37\n"] * 50 + PASSAGES).encode("3737")) < 4


def test_a_vocabulary_larger_than_the_text_is_refused_with_the_largest_possible() -> None:
    with pytest.raises(UserError, match=r"data\.tokenizer\.vocab_size: 5000 pieces.*at most (\d+)") as caught:
        train_sentencepiece(SentencePieceOptions(vocab_size=5000), PASSAGES[:4])
    limit = int(str(caught.value).split("at most ")[1].split(",")[0])
    assert train_sentencepiece(SentencePieceOptions(vocab_size=limit), PASSAGES[:4]).vocab_size == limit


def test_a_vocabulary_smaller_than_the_alphabet_is_refused_with_the_smallest_possible() -> None:
    alphabet = "".join(chr(0x4E00 + number) for number in range(400)) * 3
    with pytest.raises(UserError, match=r"data\.tokenizer\.vocab_size: 300 is less.*at least \d+"):
        train_sentencepiece(SentencePieceOptions(vocab_size=300), [alphabet])
