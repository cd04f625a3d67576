"""Counts of stores add up, whatever they are added over."""

import json
import textwrap
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from lm.data.manifest import Manifest, counted
from lm.data.readers import Document
from lm.data.sentencepiece_training import train_sentencepiece
from lm.data.store import StoreWriter, TokenStore
from lm.data.tokenizer_options import SentencePieceOptions
from lm.data.tokenizers import BytesTokenizer, HuggingFaceTokenizer, Tokenizer


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


def test_the_documentation_names_every_field() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    assert [name for name in Manifest().to_json() if f"`{name}`" not in page] == []


def test_what_has_no_tokens_is_counted_as_unknown(tmp_path: Path) -> None:
    code = Path(textwrap.__file__).read_text()
    options = SentencePieceOptions(vocab_size=400, byte_fallback=False)
    tokenizer = train_sentencepiece(options, [code[start : start + 500] for start in range(0, len(code), 500)])
    found = counts_of(tmp_path / "a", ["def \u65e5 f\u672c", "nothing strange"], tokenizer)
    assert found.unknown == 2
    assert found.unknown_rate == 2 / found.targets
    assert found.bytes == len("def \u65e5 f\u672cnothing strange".encode())


END = "<|endoftext|>"
WORDS = {"<unk>": 0, END: 1, "known": 2}
BYTES = {byte: id for id, byte in enumerate(pre_tokenizers.ByteLevel.alphabet())}
PIECES = [("<unk>", 0.0), ("known", -1.0)]


@pytest.mark.parametrize(
    ("model", "named", "unknown"),
    [
        pytest.param(
            models.BPE(BYTES, []), END, 0, id="GPT-NeoX, which has no unknown text, and END for its unk_token"
        ),
        pytest.param(models.BPE(WORDS, [], unk_token="<unk>"), "<unk>", 2 * len("known") + 2, id="BPE"),
        pytest.param(models.WordLevel(WORDS, unk_token="<unk>"), "<unk>", 2, id="words"),
        pytest.param(
            models.WordLevel(WORDS, unk_token="<unk>"), None, 2, id="words, of which the configuration is silent"
        ),
        pytest.param(
            models.WordLevel(WORDS, unk_token=END), END, 0, id="words, unknown ones of which look like an end"
        ),
        pytest.param(models.Unigram(PIECES, unk_id=0), "<unk>", 2, id="unigram"),
    ],
)
def test_an_end_is_no_unknown_text(tmp_path: Path, model: models.Model, named: str | None, unknown: int) -> None:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if isinstance(model, models.BPE) and named == END
        else pre_tokenizers.Whitespace()
    )
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": END, "eos_token": END, "unk_token": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = counts_of(tmp_path / "a", ["known \u65e5", "known", "\u672c"], HuggingFaceTokenizer(tmp_path))
    assert found.unknown == unknown
