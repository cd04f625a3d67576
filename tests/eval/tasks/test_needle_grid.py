"""The grid: one needle, at every depth in turn, between sentences."""

from __future__ import annotations

import re

import pytest

from eval.tasks.needle_grid import NeedleGrid


@pytest.mark.parametrize("length", [600, 1500, 4000])
def test_needles_stand_between_sentences_at_their_depth(counter, haystack, length) -> None:
    samples = NeedleGrid().samples(counter, length, 22, 3, haystack)
    assert [sample.meta["depth"] for sample in samples] == [pytest.approx(step / 10) for step in range(11)] * 2
    for sample in samples:
        text, question = sample.prompt.rsplit("\n\n", 1)
        (needle,) = re.findall(r"The secret number of the \w+ is \d{7}\.", text)
        before, after = text.split(needle)
        sentences = haystack.beginning(int(sample.meta["size"]))
        assert (before + after).split() == " ".join(sentences).split()
        words = [len(part.split()) for part in (before, after)]
        longest = max(len(sentence.split()) for sentence in sentences)
        assert 0 <= sample.meta["depth"] * sum(words) - words[0] < longest
        assert before.strip() in ("", " ".join(sentences[: _count(sentences, words[0])]))
        assert sample.answers[0] not in question
        assert sample.prompt.count(sample.answers[0]) == 1


def _count(sentences: list[str], words: int) -> int:
    """How many sentences have so many words together."""
    lengths = [len(sentence.split()) for sentence in sentences]
    return next(count for count in range(len(lengths) + 1) if sum(lengths[:count]) == words)
