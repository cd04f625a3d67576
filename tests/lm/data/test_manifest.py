"""Counts of stores add up, whatever they are added over."""

import textwrap
from pathlib import Path

import pytest

from lm.data.manifest import Manifest, counted
from lm.data.readers import Document
from lm.data.sentencepiece_training import train_sentencepiece
from lm.data.store import StoreWriter, TokenStore
from lm.data.tokenizer_options import SentencePieceOptions
from lm.data.tokenizers import BytesTokenizer, Tokenizer


def counts_of(folder: Path, texts: list[str], tokenizer: Tokenizer) -> Manifest:
    with StoreWriter(folder, tokenizer, keep_text=False) as writer:
        writer.add([Document(text, text.encode()) for text in texts])
    return counted(TokenStore(folder), tokenizer)


@pytest.mark.parametrize("ends", [True, False])
def test_counts_add_up_over_stores(tmp_path: Path, ends: bool) -> None:
    tokenizer = BytesTokenizer(ends)
    found = counts_of(tmp_path / "a", ["aab", "ab"], tokenizer) + counts_of(tmp_path / "b", ["\u00e4"], tokenizer)
    assert (found.documents, found.bytes, found.ends) == (3, 7, 3 * ends)
    assert (found.tokens, found.targets) == (10 + 3 * ends, 7 + 3 * ends)
    assert found.bytes_per_token == 1
    assert sum(found.lengths) == 3
    assert Manifest.from_json(found.to_json()) == found
    assert Manifest().bytes_per_token == 0


def test_what_has_no_tokens_is_counted_as_unknown(tmp_path: Path) -> None:
    code = Path(textwrap.__file__).read_text()
    options = SentencePieceOptions(vocab_size=400, byte_fallback=False)
    tokenizer = train_sentencepiece(options, [code[start : start + 500] for start in range(0, len(code), 500)])
    found = counts_of(tmp_path / "a", ["def \u65e5 f\u672c", "nothing strange"], tokenizer)
    assert found.unknown == 2
    assert found.unknown_rate == 2 / found.targets
    assert found.bytes == len("def \u65e5 f\u672cnothing strange".encode())
