"""Stories, told again from their facts alone."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.tasks.babi import DROPS, MOVES, ROOMS, TAKES, where_is_person, where_is_thing, where_was_thing


def rooms_of(facts: tuple[str, ...], asked: str) -> list[str]:
    """The rooms that a person or a thing was in, one after another."""
    place: dict[str, str] = {}
    holder: dict[str, str] = {}
    visited: dict[str, list[str]] = {}
    for fact in facts:
        person, deed = fact.removesuffix(".").split(" ", 1)
        verb = next(
            verb for verb in (*sorted(MOVES, key=len, reverse=True), *TAKES, *DROPS) if deed.startswith(f"{verb} the ")
        )
        what = deed.removeprefix(f"{verb} the ").removesuffix(" there")
        if verb in MOVES:
            assert place.get(person) != what
            place[person] = what
            for mover in (person, *(thing for thing, by in holder.items() if by == person)):
                visited.setdefault(mover, []).append(what)
        elif verb in TAKES:
            assert what not in holder
            if what in visited:
                assert visited[what][-1] == place[person]
            visited.setdefault(what, [place[person]])
            holder[what] = person
        else:
            assert holder.pop(what) == person
    return visited[asked]


@pytest.mark.parametrize("story", [where_is_person, where_is_thing, where_was_thing])
@given(seed=st.integers(0, 2**32))
def test_the_facts_answer_the_question(story, seed) -> None:
    told = story(random.Random(seed))
    if match := re.fullmatch(r"Where was the (\w+) before the (\w+)\?", told.question):
        rooms = rooms_of(told.facts, match[1])
        assert rooms[-1] == match[2]
        assert rooms.count(match[2]) == 1
        assert told.answer == rooms[-2] != match[2]
    else:
        asked = re.fullmatch(r"Where is (?:the )?(\w+)\?", told.question)[1]
        assert told.answer == rooms_of(told.facts, asked)[-1]
    assert told.answer in ROOMS


@pytest.mark.parametrize("story", [where_is_person, where_is_thing, where_was_thing])
def test_every_room_is_an_answer_about_as_often(story) -> None:
    answers = [story(random.Random(seed)).answer for seed in range(600)]
    assert all(60 < answers.count(room) < 140 for room in ROOMS)
