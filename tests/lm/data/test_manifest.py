"""Counts of stores add up, whatever they are added over."""

from pathlib import Path

import pytest

from lm.data.manifest import Manifest, counted
from lm.data.readers import Document
from lm.data.store import StoreWriter, TokenStore
from lm.data.tokenizers import BytesTokenizer


def counts_of(folder: Path, texts: list[str], ends: bool) -> Manifest:
    tokenizer = BytesTokenizer(ends)
    with StoreWriter(folder, tokenizer, keep_text=False) as writer:
        writer.add([Document(text, text.encode()) for text in texts])
    return counted(TokenStore(folder), tokenizer)


@pytest.mark.parametrize("ends", [True, False])
def test_counts_add_up_over_stores(tmp_path: Path, ends: bool) -> None:
    found = counts_of(tmp_path / "a", ["aab", "ab"], ends) + counts_of(tmp_path / "b", ["\u00e4"], ends)
    assert (found.documents, found.bytes, found.ends) == (3, 7, 3 * ends)
    assert (found.tokens, found.targets) == (10 + 3 * ends, 7 + 3 * ends)
    assert found.bytes_per_token == 1
    assert sum(found.lengths) == 3
    assert Manifest.from_json(found.to_json()) == found
    assert Manifest().bytes_per_token == 0
