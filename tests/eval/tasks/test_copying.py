"""Copy and parity: the answer follows from what the prompt shows."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from eval.tasks.copying import CopyAtDistance, Parity


@settings(deadline=None, max_examples=15)
@given(length=st.integers(300, 4000), seed=st.integers(0, 2**32))
def test_the_words_stand_at_the_front_and_fit_into_the_answer(counter, haystack, length, seed) -> None:
    (sample,) = CopyAtDistance().samples(counter, length, 1, seed, haystack)
    words = re.match(r"Memorize these 8 words in their order: (.+)\n\n", sample.prompt)[1]
    assert (words,) == sample.answers
    assert len(set(words.split())) == 8
    assert len(counter.encode(f" {words}")) <= sample.max_new_tokens
    half = " ".join(words.split()[:4])
    assert CopyAtDistance().score(half, sample) == 0.5
    assert CopyAtDistance().score(" ".join(reversed(words.split())), sample) == 0


@settings(deadline=None, max_examples=15)
@given(length=st.integers(150, 4000), seed=st.integers(0, 2**32))
def test_parity_is_that_of_the_ones(counter, haystack, length, seed) -> None:
    (sample,) = Parity().samples(counter, length, 1, seed, haystack)
    said = re.findall(r"Bits: ([01 ]+)\nThe number of ones is(?: (\w+)\.)?", sample.prompt)
    *shots, (bits, nothing) = said
    assert nothing == ""
    assert {answer for _, answer in shots} == {"even", "odd"}
    assert all(len(bits.split()) == 8 for bits, _ in shots)
    for text, answer in [*shots, (bits, sample.answers[0])]:
        assert answer == ("even", "odd")[text.count("1") % 2]
    assert len(bits.split()) == sample.meta["size"]
