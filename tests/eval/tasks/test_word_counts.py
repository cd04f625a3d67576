"""Common and frequent words, counted by hand."""

from __future__ import annotations

import re
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from eval.tasks import Haystack
from eval.tasks.base import Scene
from eval.tasks.word_counts import CommonWords, FrequentWords
from eval.tasks.words import every_word

UNUSED = Haystack("unused", "unused")


def listed(prompt: str) -> list[str]:
    """The words of a numbered list, whose numbers must be right."""
    pieces = re.split(r"(?:^| )(\d+)\. ", prompt.split("\n")[1])[1:]
    assert [int(number) for number in pieces[::2]] == list(range(1, len(pieces) // 2 + 1))
    return pieces[1::2]


@settings(deadline=None, max_examples=15)
@given(length=st.integers(2300, 4095) | st.integers(8000, 12_000), seed=st.integers(0, 2**32))
def test_ten_words_are_most_common_and_a_solved_example_stands_before(counter, length, seed) -> None:
    (sample,) = CommonWords().samples(counter, length, 1, seed, UNUSED)
    example, question = re.split(r"\n(?=Below is a numbered list)", sample.prompt)
    often, seldom, example_often, example_seldom, example_size = (
        (6, 1, 3, 1, 20) if length < 4096 else (30, 3, 10, 3, 40)
    )
    counts = Counter(listed(question))
    assert {word for word, count in counts.items() if count == often} == set(sample.answers)
    assert set(counts.values()) == {often, seldom}
    assert len(counts) == sample.meta["size"]
    example_counts = Counter(listed(example))
    common = {word for word, count in example_counts.items() if count == example_often}
    assert set(example_counts.values()) == {example_often, example_seldom}
    assert len(example_counts) == example_size
    answer = example.split("appear most often in the list are: ")[1]
    assert set(re.split(r" ?\d+\. ", answer)[1:]) == common
    assert sample.prompt.endswith("The top 10 words that appear most often in the list are:")


@settings(deadline=None, max_examples=15)
@given(length=st.integers(800, 12_000), seed=st.integers(0, 2**32))
def test_the_three_most_frequent_coded_words_are_asked_for(counter, length, seed) -> None:
    (sample,) = FrequentWords().samples(counter, length, 1, seed, UNUSED)
    text = sample.prompt.split("coded words. ")[1].split("\nQuestion")[0].split(" ")
    counts = Counter(text)
    assert counts.most_common(1)[0][0] == "..."
    del counts["..."]
    (*_, (_, third), (_, fourth)) = counts.most_common(4)
    assert third > fourth
    assert set(sample.answers) == {word for word, _ in counts.most_common(3)}
    assert all(re.fullmatch("[a-z]{6}", word) for word in counts)


def test_more_words_than_the_lists_hold_are_compounds(counter) -> None:
    scene = Scene("cwe", 0, 200_000, 0, counter, UNUSED)
    known = len(every_word())
    assert not any("-" in word for word in CommonWords().write(scene, known).answers[:3])
    assert all("-" in word for word in CommonWords().write(scene, known + 1).answers)
