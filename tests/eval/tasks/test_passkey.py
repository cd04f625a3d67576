"""Passkey: the key can be read, stands where it was asked for, and the two forms are scored by their own rules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.tasks.base import CannotBuildError
from eval.tasks.haystack import Haystack
from eval.tasks.passkey import KEY_LINE, QUESTION, LongLoraPasskey, Passkey

NOTHING = Haystack("unused", "unused")


@settings(deadline=None)
@given(length=st.integers(400, 6000), seed=st.integers(0, 2**40), depth=st.none() | st.floats(0, 1))
@pytest.mark.parametrize("form", [Passkey, LongLoraPasskey])
def test_the_prompt_fills_the_length_and_holds_the_key_at_its_depth(form, counter, length, seed, depth) -> None:
    task = form(depth=depth)
    (sample,) = task.samples(counter, length, 1, seed, NOTHING)
    (key,) = sample.answers
    tokens = len(counter.encode(sample.prompt))
    assert 0 <= length - tokens - sample.max_new_tokens <= length / 1000
    assert tokens == sample.meta["tokens"]
    assert 1 <= int(key) <= 50_000
    assert sample.prompt.count(KEY_LINE.format(key=key)) == 1
    assert sample.prompt.endswith("\n" + QUESTION)
    _, before, _, after, _ = sample.prompt.split("\n")
    asked = sample.meta["depth"] if depth is None else depth
    assert abs(len(before) - asked * (len(before) + len(after))) <= 1
    assert task.score(f" {key}", sample) == 1
    assert task.score("", sample) == 0
    assert task.score(f" {int(key) + 1}", sample) == 0


def test_landmark_reads_the_first_integer_and_longlora_the_whole_answer(counter) -> None:
    (sample,) = Passkey().samples(counter, 1000, 1, 0, NOTHING)
    assert sample.max_new_tokens == 10
    assert Passkey().score(f" {sample.answers[0]}. 77 is", sample) == 1
    assert Passkey().score(f" 77 {sample.answers[0]}", sample) == 0
    (sample,) = LongLoraPasskey().samples(counter, 1000, 1, 0, NOTHING)
    assert sample.max_new_tokens == len(counter.encode(f" {sample.answers[0]}"))
    assert LongLoraPasskey().score(f" {sample.answers[0]}.", sample) == 0


def test_keys_differ_between_lengths_indices_and_seeds(counter) -> None:
    samples = [
        sample
        for length in (1000, 2000)
        for seed in (0, 1)
        for sample in Passkey().samples(counter, length, 10, seed, NOTHING)
    ]
    assert len({sample.answers for sample in samples}) > 35
    assert len({sample.id for sample in samples}) == 40
    assert Passkey().samples(counter, 1000, 3, 0, NOTHING) == samples[:3]


def test_a_length_that_is_too_short_is_refused_by_name(counter) -> None:
    with pytest.raises(CannotBuildError, match=r"passkey does not fit into 60 tokens: its smallest prompt has \d+"):
        Passkey().samples(counter, 60, 1, 0, NOTHING)
