"""NVIDIA's rules: what is hidden, where, how often, and how it is asked for."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.tasks.niah import DEPTHS, NIAH, Niah, within_lines, within_sentences
from eval.tasks.words import FILLER

NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (.+?) is: (\S+)\.")
LENGTH = 2000


def parts(prompt: str) -> tuple[str, str]:
    """What hides the needles, and the question."""
    head, _, question = prompt.rpartition("\nWhat ")
    return head.partition("\n")[2], question


@pytest.mark.parametrize("task", NIAH, ids=lambda task: task.name)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32), length=st.integers(1200, 5000))
def test_what_is_asked_is_hidden_once_and_answers_follow_the_keys(task: Niah, counter, haystack, seed, length) -> None:
    (sample,) = task.samples(counter, length, 1, seed, haystack)
    context, question = parts(sample.prompt)
    needles = NEEDLE.findall(context)
    keys = [key for _, key, _ in needles]
    values = [value for *_, value in needles]
    distractors = 0 if task.haystack != "needle" else int(sample.meta["size"])
    assert len(needles) == task.keys * task.values + distractors
    assert len(set(values)) == len(values)
    assert len(set(keys)) == len(keys) - task.keys * (task.values - 1)
    asked = {key for key in keys if re.search(rf"(?<![\w-]){re.escape(key)}(?![\w-])", question)}
    assert sorted(sample.answers) == sorted(value for _, key, value in needles if key in asked)
    assert len(sample.answers) == task.queries * task.values
    for answer in sample.answers:
        assert sample.prompt.count(answer) == 1
        assert answer not in question
        assert re.fullmatch(
            r"[1-9]\d{6}" if task.value == "numbers" else r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", answer
        )
    if task.haystack == "noise":
        assert set(context.split("\n")) == {
            FILLER,
            *(f"One of the special magic numbers for {keys[0]} is: {values[0]}.",),
        }


def test_one_needle_is_asked_for_in_the_singular_and_several_in_the_plural(counter, haystack) -> None:
    (one,) = NIAH[0].samples(counter, LENGTH, 1, 0, haystack)
    assert one.prompt.startswith("A special magic number is hidden within the following text.")
    assert one.prompt.endswith("mentioned in the provided text is")
    assert "What is the special magic number for" in one.prompt
    assert "I will quiz you about the number afterwards." in one.prompt
    (many,) = NIAH[-1].samples(counter, LENGTH, 1, 0, haystack)
    assert many.prompt.startswith("Some special magic numbers are hidden within the following text.")
    assert re.search(r"numbers for \S+.*?, .+?, .+?, and .+ mentioned in the provided text are$", many.prompt)


def test_needles_in_an_essay_stand_at_the_depth_of_their_sentence() -> None:
    sentences = [f"Sentence {number}." for number in range(50)]
    for depth in DEPTHS:
        pieces = within_sentences(sentences, ["NEEDLE"], [depth]).split(". ")
        before = next(place for place, piece in enumerate(pieces) if "NEEDLE" in piece)
        assert abs(before - depth / 100 * 50) <= 1
    assert within_sentences(["A.", "B."], ["1", "2"], [100, 0]) == "1 A. B. 2"
    assert len(DEPTHS) == len(set(DEPTHS)) == 40
    assert (DEPTHS[0], DEPTHS[-1]) == (0, 100)


@given(lines=st.integers(1, 30), data=st.data(), rng=st.randoms(use_true_random=False))
def test_needles_among_lines_keep_their_order_and_each_has_a_line_behind(lines, data, rng) -> None:
    needles = [f"needle {number}" for number in range(data.draw(st.integers(0, lines)))]
    made = within_lines(["line"] * lines, needles, rng).split("\n")
    assert [piece for piece in made if piece != "line"] == needles
    assert made.count("line") == lines
    assert made[-1] == "line"
    assert not any(first != "line" and second != "line" for first, second in pairwise(made))


def test_depths_of_samples_cover_the_text(counter, haystack) -> None:
    for task in NIAH[:3]:
        depths = [sample.meta["depth"] for sample in task.samples(counter, LENGTH, 40, 0, haystack)]
        assert min(depths) < 0.2
        assert max(depths) > 0.8
