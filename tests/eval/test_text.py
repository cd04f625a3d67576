from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from eval.text import Text, joined, read_text
from lm.data.sentencepiece_training import train_sentencepiece
from lm.data.tokenizer_options import SentencePieceOptions
from lm.data.tokenizers import BytesTokenizer, Tokenizer
from lm.errors import UserError
from lm.hf.tokenizer import fast_tokenizer

PASSAGES = [f"{index} seven quick foxes jump {index * 7} times, naïvely 日本語 \U0001f600. " for index in range(80)]


@pytest.fixture(scope="module", params=["bytes", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    kind: Tokenizer = BytesTokenizer()
    if request.param == "sentencepiece":
        kind = train_sentencepiece(SentencePieceOptions(vocab_size=296), PASSAGES)
    return fast_tokenizer(kind, 64)


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(codec="utf-8")) | st.sampled_from(["", " a  b\n", "日本語 naïve \U0001f600!"]))
def test_bytes_and_words_sum_to_those_of_the_text(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    found = read_text(tokenizer, text)
    assert found.ids.tolist() == tokenizer(text, add_special_tokens=False).input_ids
    assert len(found) == len(found.bytes) == len(found.words)
    assert found.bytes.sum() == (len(text.encode()) if len(found) else 0)
    assert found.words.sum() == (len(text.split()) if len(found) else 0)
    assert (found.bytes >= 0).all()


def test_a_byte_tokenizer_has_a_character_end_in_one_token() -> None:
    found = read_text(fast_tokenizer(BytesTokenizer(), 64), "aé b")
    assert found.ids.tolist() == list("aé b".encode())
    assert found.bytes.sum() == 5
    assert found.words.tolist()[-1] == 1


def test_texts_are_joined_by_a_token_that_stands_for_no_text() -> None:
    texts = [Text(np.arange(n), np.ones(n, np.int64), np.zeros(n, np.int64)) for n in (2, 3)]
    stream = joined(texts, 9)
    assert stream.ids.tolist() == [0, 1, 9, 0, 1, 2]
    assert stream.bytes.tolist() == [1, 1, 0, 1, 1, 1]
    assert joined(texts, None).ids.tolist() == [0, 1, 0, 1, 2]
    assert texts[0].behind(0) is texts[0]
    assert stream.part(1, 3).ids.tolist() == [1, 9]


def test_a_tokenizer_without_offsets_is_refused(tmp_path: Path) -> None:
    class Slow:
        is_fast, name_or_path = False, "slow"

    with pytest.raises(UserError, match="slow: perplexity per byte needs a fast tokenizer"):
        read_text(Slow(), "text")  # type: ignore[arg-type]
