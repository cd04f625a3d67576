from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.key_tokens import key_tokens, long_perplexity, transferred
from eval.text import Text

FAR = 200


def looks_back(before: list[int], token: int) -> float:
    """Certain of a FAR token if there was one before in its row, else lost."""
    if token == FAR:
        return 0.5 if FAR in before else 5.0
    return 1.0


def text(ids: list[int], sizes: list[int] | None = None) -> Text:
    amounts = np.array(sizes or [1] * len(ids))
    return Text(np.array(ids), amounts, np.zeros(len(ids), np.int64))


def test_key_tokens_are_those_that_only_the_far_context_predicts(toy: Any) -> None:
    ids = [1, FAR, *[2] * 20, FAR, 3, FAR, 4]
    (mask,) = key_tokens(toy(looks_back), [text(ids)], short=6, step=2)
    assert (np.flatnonzero(mask) + 1).tolist() == [22]  # the third is near to the second
    found = long_perplexity(toy(looks_back), [text(ids)], [mask])
    assert (found.tokens, found.nll) == (1, 0.5)
    assert not key_tokens(toy.markov(), [text(ids)], 6, 2)[0].any()
    assert not key_tokens(toy(looks_back), [text(ids)], 40, 10)[0].any()


def test_where_no_token_is_key_there_is_no_figure(toy: Any) -> None:
    short = text([1, 2, 3])
    with pytest.raises(ValueError, match="no token"):
        long_perplexity(toy.uniform(9), [short], key_tokens(toy.uniform(9), [short], 2, 1))


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=20), st.data())
def test_masks_move_to_another_tokenizer_by_bytes(sizes: list[int], data: st.DataObject) -> None:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(sizes) - 1, max_size=len(sizes) - 1)))
    one = text([0] * len(sizes), sizes)
    (kept,) = transferred([mask], [one], [one])
    assert (kept == (mask & (one.bytes[1:] > 0))).all()
    total = sum(sizes)
    if total > 1:
        per_byte = text([0] * total)
        (bytes_mask,) = transferred([mask], [one], [per_byte])
        assert (bytes_mask == np.repeat(np.array([False, *mask]), sizes)[1:]).all()
        whole = text([0, 0], [0, total])
        (all_or_nothing,) = transferred([mask], [one], [whole])
        assert all_or_nothing[0] == np.repeat(np.array([False, *mask]), sizes).all()
