"""The pattern language: what it means, and that its errors point at the place to change."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.pattern import MAX_LAYERS, PatternError, expand

NAMES = ("rat", "local", "ls", "global", "_x-1")

# A pattern as text beside the layers it means, built together so that neither is computed from the other.
spaces = st.sampled_from(["", " ", "\n", "\t  "])
leaves = st.tuples(st.sampled_from(NAMES), spaces).map(lambda x: (x[1] + x[0] + x[1], [x[0]]))


def rows(items: st.SearchStrategy[tuple[str, list[str]]]) -> st.SearchStrategy[tuple[str, list[str]]]:
    return st.lists(items, min_size=1, max_size=3).map(
        lambda xs: (" ".join(text for text, _ in xs), [name for _, layers in xs for name in layers])
    )


def repeats(items: st.SearchStrategy[tuple[str, list[str]]]) -> st.SearchStrategy[tuple[str, list[str]]]:
    return st.tuples(rows(items), st.integers(1, 4), spaces, st.booleans()).map(
        lambda x: (f"({x[0][0]}){x[2]}*{x[2]}{x[1]}", x[0][1] * x[1]) if x[3] else (f"({x[0][0]})", x[0][1])
    )


patterns = rows(st.recursive(leaves, repeats, max_leaves=6))


@given(patterns)
@settings(deadline=None)
def test_a_pattern_means_its_layers_written_out(pattern: tuple[str, list[str]]) -> None:
    text, layers = pattern
    assert expand(text, NAMES) == layers
    assert expand(" ".join(layers), NAMES) == layers


def test_the_example_of_the_documentation() -> None:
    assert expand("(rat local)*3 ls global", NAMES) == ["rat", "local"] * 3 + ["ls", "global"]
    assert expand("rat*2 ((ls)*2 local)*2", NAMES) == ["rat"] * 2 + ["ls", "ls", "local"] * 2


@given(st.text(alphabet="rat ls()*0123 -_é\n", max_size=30) | st.text(max_size=20))
@settings(deadline=None, max_examples=300)
def test_any_text_gives_layers_or_a_column_inside_the_text(text: str) -> None:
    try:
        layers = expand(text, NAMES)
    except PatternError as caught:
        error = caught
    else:
        assert layers
        assert set(layers) <= set(NAMES)
        return
    assert 1 <= error.column <= max(len(text), 1)
    assert str(error).split("\n")[-1] == " " * (2 + error.column - 1) + "^"


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("rat (local ls", 5, "never closed"),
        ("rat local) ls", 10, "closes nothing"),
        ("rat () ls", 5, "empty"),
        ("", 1, "empty"),
        ("rat *", 5, "number of repeats"),
        ("rat * local", 5, "number of repeats"),
        ("*3 rat", 1, "there is none"),
        ("rat*0", 5, "1 or more"),
        ("rat*-1", 4, "number of repeats"),
        ("rat 3", 5, "not '3'"),
        ("rat, local", 4, "not ','"),
        ("rat locl", 5, "Did you mean 'local'?"),
        ("rat*10001", 5, "more than 10,000 layers"),
        ("((rat*1000)*2 rat)*5", 20, "more than 10,000 layers"),
        ("rat*5001 rat*5000", 1, "more than 10,000 layers"),
        ("rat*" + "9" * 6000, 5, "more than 10,000 layers"),
    ],
)
def test_a_mistake_is_named_at_its_column(text: str, column: int, says: str) -> None:
    with pytest.raises(PatternError) as caught:
        expand(text, NAMES)
    assert caught.value.column == column
    assert says in str(caught.value)


def test_depth_and_size_have_no_cliff_before_the_limit() -> None:
    assert expand("(" * 5000 + "rat" + ")" * 5000, NAMES) == ["rat"]
    assert len(expand(f"rat*{MAX_LAYERS}", NAMES)) == MAX_LAYERS
