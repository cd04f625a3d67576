"""The sample of a run on questions and answers: the shortest held-out question, up to what ends its answer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.store import StoreWriter, TargetedDocument, TokenStore
from lm.data.tokenizers import BytesTokenizer
from lm.train.finish import question

documents = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 4), st.lists(st.booleans(), max_size=4)), min_size=1, max_size=6
)


@given(documents=documents)
@settings(deadline=None, max_examples=60)
def test_the_shortest_prompt_is_asked(documents: list[tuple[int, int, list[bool]]]) -> None:
    masks = [[False] * prompt + [True] * answer + [False, *rest] for prompt, answer, rest in documents]
    tokens = [np.arange(30 * number, 30 * number + len(mask), dtype=np.uint32) for number, mask in enumerate(masks)]
    with tempfile.TemporaryDirectory() as folder:
        with StoreWriter(Path(folder) / "store", BytesTokenizer(), keep_text=False) as writer:
            pairs = zip(tokens, masks, strict=True)
            writer.add_targeted([TargetedDocument(ids, np.array(mask), b"") for ids, mask in pairs])
        prompt, end = question(TokenStore(Path(folder) / "store"))
    shortest = min(range(len(documents)), key=lambda number: documents[number][0])
    length, answer, _ = documents[shortest]
    assert prompt == tokens[shortest][:length].tolist()
    assert end == tokens[shortest][length + answer - 1]
