"""Fitting a size to a budget, and random numbers of one's own."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.tasks.base import largest_fitting, stream


@given(
    units=st.lists(st.integers(1, 9), min_size=1, max_size=300),
    fixed=st.integers(0, 50),
    budget=st.integers(0, 2000),
    least=st.integers(0, 5),
    guess=st.integers(0, 400),
)
def test_the_size_fits_and_wastes_less_than_a_unit(units, fixed, budget, least, guess) -> None:
    least = min(least, len(units))
    costs = [fixed, *(fixed + total for total in accumulate(units))]
    size = largest_fitting(lambda n: costs[n], budget, least, len(units), guess)
    if costs[least] > budget:
        assert size is None
        return
    assert size is not None
    assert costs[size] <= budget
    assert size == len(units) or budget - costs[size] < max(*units, budget / 1000)


@given(budget=st.integers(10, 10**6), per_unit=st.floats(0.1, 30), guess=st.integers(0, 10**5))
def test_even_units_take_a_handful_of_steps(budget, per_unit, guess) -> None:
    tried = []

    def cost(n: int) -> int:
        tried.append(n)
        return int(n * per_unit)

    size = largest_fitting(cost, budget, 0, None, guess)
    assert budget - int(size * per_unit) <= max(1, per_unit, budget / 1000)
    assert len(tried) <= 8


def test_a_stream_depends_on_its_key_alone() -> None:
    random.seed(0)
    before = stream(1, "task", 2).random()
    random.seed(1)
    assert stream(1, "task", 2).random() == before
    assert len({stream(*key).random() for key in ((1, 2), (12,), (2, 1), ("1", "2", ""))}) == 4


def test_costs_that_dip_are_still_kept_within_the_budget() -> None:
    costs = [10, 30, 20, 40, 35, 60, 50, 80, 90, 200]
    size = largest_fitting(costs.__getitem__, 55, 0, len(costs) - 1, 3)
    assert costs[size] <= 55
    with pytest.raises(IndexError):
        largest_fitting(costs.__getitem__, 1000, 0, None, 3)
