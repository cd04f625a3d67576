"""The unigram price against a sum written out by hand."""

import math
from collections import Counter
from pathlib import Path

import pytest

from lm.data.readers import Document
from lm.data.store import StoreWriter, TokenStore
from lm.data.tokenizers import BytesTokenizer
from lm.data.validation import unigram_bits_per_byte


def store_of(folder: Path, texts: list[str]) -> TokenStore:
    with StoreWriter(folder, BytesTokenizer(), keep_text=False) as writer:
        writer.add([Document(text, text.encode()) for text in texts])
    return TokenStore(folder)


def test_unigram_bits_are_the_cross_entropy_of_add_one_frequencies(tmp_path: Path) -> None:
    train = [store_of(tmp_path / "a", ["aab", "ab"]), store_of(tmp_path / "b", ["bb"])]
    held_out = [store_of(tmp_path / "c", ["abz"])]
    counts = Counter("aababbb")
    total = 7 + 3 + 258  # characters, one eos each, one more for every token
    price = {
        "a": -math.log2((counts["a"] + 1) / total),
        "b": -math.log2((counts["b"] + 1) / total),
        "z": -math.log2(1 / total),
        "eos": -math.log2(4 / total),
    }
    assert unigram_bits_per_byte([store.counts for store in train], held_out) == pytest.approx(sum(price.values()) / 3)
