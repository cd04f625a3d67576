"""Reading ahead changes nothing but when things are read."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.read_ahead import ReadAhead


def in_steps(ranks: int, rank: int, rows: int, size: int, steps: int) -> list[tuple[int, ...]]:
    """What a rank asks for: `size` rows at a time, `rows` a step."""
    return [
        tuple(range(first + begin, first + begin + size))
        for step in range(steps)
        for first in [(step * ranks + rank) * rows]
        for begin in range(0, rows, size)
    ]


@given(requests=st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=30))
@settings(deadline=None, max_examples=30)
def test_whatever_is_asked_is_what_is_given(requests: list[tuple[int, ...]]) -> None:
    ahead = ReadAhead(lambda indices: ("read", *indices))
    assert [ahead(indices) for indices in requests] == [("read", *indices) for indices in requests]


@pytest.mark.parametrize(("ranks", "rows", "size"), [(1, 1, 1), (1, 4, 2), (2, 1, 1), (3, 4, 2), (4, 6, 2)])
def test_the_rows_of_coming_steps_are_read_in_another_thread(ranks: int, rows: int, size: int) -> None:
    here, waited = threading.get_ident(), []

    def read(indices: tuple[int, ...]) -> tuple[int, ...]:
        waited.append((indices, threading.get_ident() == here))
        return indices

    ahead = ReadAhead(read)
    requests = in_steps(ranks, ranks - 1, rows, size, 12)
    for indices in requests:
        assert ahead(indices) == indices
        time.sleep(0.002)
    own = [indices for indices, is_here in waited if is_here]
    assert not set(own) & set(requests[len(requests) // 2 :]), "later steps wait for what could be guessed"


def test_a_guess_that_cannot_be_read_hurts_nobody() -> None:
    def read(indices: tuple[int, ...]) -> int:
        if max(indices) > 9:
            raise IndexError(indices)
        return sum(indices)

    ahead = ReadAhead(read)
    assert [ahead((index,)) for index in range(10)] == list(range(10))
    with pytest.raises(IndexError):
        ahead((10,))
    assert ahead((3,)) == 3
