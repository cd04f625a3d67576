"""Facts among background: all there, in their order, between whole sentences."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.tasks import CannotBuildError, Haystack
from eval.tasks.babi import where_was_thing
from eval.tasks.babilong import BABILONG, background, scatter


@pytest.mark.parametrize("task", BABILONG, ids=lambda task: task.name)
def test_the_facts_stand_in_order_within_the_context(task, counter, haystack) -> None:
    for index, sample in enumerate(task.samples(counter, 3000, 5, 0, haystack)):
        context = sample.prompt.split("<context>\n")[1].split("\n</context>")[0]
        assert sample.prompt.endswith(f"</context>\nQuestion: {sample.meta['question']}\nAnswer:")
        assert context.count(" the ") > int(sample.meta["facts"]), index
        assert (
            task.score(f" The latest place is the {sample.answers[0]}. Not the kitchen, not the office.", sample) == 1
        )
        others = [
            room for room in ("kitchen", "office", "garden") if room not in (*sample.answers, sample.meta["question"])
        ]
        assert task.score(f" {sample.answers[0]} or {others[0]}", sample) == (others[0] in str(sample.meta["question"]))


@given(seed=st.integers(0, 2**32), sentences=st.integers(1, 40))
def test_scattering_keeps_the_order_of_both(seed, sentences) -> None:
    story = where_was_thing(random.Random(seed))
    text = [f"Sentence {number} of the background." for number in range(sentences)]
    made = scatter(story.facts, text, random.Random(seed))
    position = -1
    for fact in story.facts:
        position = made.index(fact, position + 1)
    assert [piece for piece in made.replace(". ", ".\n").split("\n") if piece.startswith("Sentence")] == text


@given(seed=st.integers(0, 2**32), words=st.integers(1, 5000))
def test_the_background_has_as_many_words_as_asked_and_starts_over(seed, words) -> None:
    text = "Too short. " + " ".join(f"Sentence number {n} has ten words or a few more." for n in range(7))
    made = background(Haystack("text", text), random.Random(seed), words)
    assert sum(len(sentence.split()) for sentence in made) == words
    assert "Too short." not in made
    starts = [int(sentence.split()[2]) for sentence in made if len(sentence.split()) > 2]
    assert all((second - first) % 7 == 1 for first, second in pairwise(starts))


def test_a_text_of_short_sentences_is_refused(counter) -> None:
    with pytest.raises(CannotBuildError, match=r"haystack: 'notes' has no sentence of 10 words"):
        BABILONG[0].samples(counter, 3000, 1, 0, Haystack("notes", "One. Two. Three."))
