"""Variable tracking: a chain that can be followed to its end, behind a solved example."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.tasks import CannotBuildError, Haystack
from eval.tasks.variable_tracking import VariableTracking


def follow(text: str, value: str) -> list[str]:
    """The variables that hold the value, from the statements alone, in the order in which they get it."""
    held: list[str] = []
    for name, source in re.findall(r"^VAR (\w+) = (?:VAR )?(\w+) ?$", text, re.MULTILINE):
        if source == value or source in held:
            held.append(name)
    return held


@settings(deadline=None, max_examples=25)
@given(length=st.integers(1800, 6000), seed=st.integers(0, 2**32))
def test_the_whole_chain_is_there_in_order_and_the_example_is_solved(counter, length, seed) -> None:
    (sample,) = VariableTracking().samples(counter, length, 1, seed, Haystack("unused", "unused"))
    example, question = sample.prompt.split("\n\nMemorize and track")
    value = re.search(r"5 variables are assigned the value (\d{5}), they are: $", sample.prompt)[1]
    assert follow(question, value) == list(sample.answers)
    assert len(set(sample.answers)) == 5
    assert all(re.fullmatch("[A-Z]{5}", name) for name in sample.answers)
    example_value = re.search(r"value (\d{5}), they are: ", example)[1]
    assert example_value != value
    assert follow(example, example_value) == example.split("they are: ")[1].split()
    assert all(re.fullmatch("[A-Z]{3}", name) for name in follow(example, example_value))
    assert not any(name in example for name in sample.answers)


def test_a_length_without_room_for_the_chain_is_refused(counter) -> None:
    with pytest.raises(CannotBuildError, match="vt does not fit into 300 tokens"):
        VariableTracking().samples(counter, 300, 1, 0, Haystack("unused", "unused"))
