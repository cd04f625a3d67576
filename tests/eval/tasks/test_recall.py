"""Recall: brute-force look-up gets all of it, and no shortcut does."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.tasks import Haystack
from eval.tasks.recall import RECALL, Recall

UNUSED = Haystack("unused", "unused")


def pairs_of(prompt: str) -> list[tuple[str, str]]:
    *lines, _ = prompt.split("\n")
    return [(key, value) for key, separator, value in (line.partition(" = ") for line in lines) if separator]


@pytest.mark.parametrize("task", RECALL, ids=lambda task: task.name)
@settings(deadline=None, max_examples=10)
@given(length=st.integers(300, 5000), seed=st.integers(0, 2**32))
def test_the_last_value_of_the_key_answers(task: Recall, counter, length, seed) -> None:
    (sample,) = task.samples(counter, length, 1, seed, UNUSED)
    pairs = pairs_of(sample.prompt)
    asked = sample.prompt.rpartition("\n")[2].removesuffix(" =")
    assert (dict(pairs)[asked],) == sample.answers
    assert len({value for _, value in pairs}) == len(pairs)
    assert sample.prompt.split().count(sample.answers[0]) == 1
    assert len(dict(pairs)) == sample.meta["pairs"]
    keys = [key for key, _ in pairs]
    if task.forgetting:
        assert len(keys) - len(set(keys)) == len(set(keys)) // 2
    else:
        assert len(set(keys)) == len(keys)
    if task.compositional:
        for place in (0, 1):
            sharing = defaultdict(set)
            for key, value in pairs:
                sharing[key.split()[place]].add(value)
            assert all(len(values) ** 2 == len(pairs) for values in sharing.values())


def test_gaps_follow_their_law(counter) -> None:
    """The mean of a uniform gap is half of the room; of g^-0.99 over the first n slots, n / ln n or so."""

    def gaps(task: Recall) -> list[float]:
        samples = task.samples(counter, 1500, 60, 0, UNUSED)
        assert all(sample.meta["gap"] <= sample.meta["size"] for sample in samples)
        return [sample.meta["gap"] / sample.meta["size"] for sample in samples]

    assert mean(gaps(Recall("uniform", exponent=1.0))) == pytest.approx(0.5, abs=0.12)
    assert mean(gaps(Recall("steep"))) < 0.3


def test_some_questions_of_the_forgetting_task_are_about_updated_keys(counter) -> None:
    updated = []
    for sample in RECALL[2].samples(counter, 600, 40, 0, UNUSED):
        asked = sample.prompt.rpartition("\n")[2].removesuffix(" =")
        updated.append([key for key, _ in pairs_of(sample.prompt)].count(asked) == 2)
    assert 0.2 < mean(updated) < 0.8
