"""Figures of several ranks as one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.train.observe.figures import Largest, Mean, RootMean, joined

VALUES = st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=5), min_size=1, max_size=4)


@given(ranks=VALUES)
def test_ranks_together_tell_what_one_would_tell_of_all_values(ranks: list[list[float]]) -> None:
    found = joined(
        {
            "mean": Mean(sum(values), len(values)),
            "rms": RootMean(sum(value**2 for value in values), len(values)),
            "largest": Largest(max(values)),
        }
        for values in ranks
    )
    together = [value for values in ranks for value in values]
    assert found["mean"] == pytest.approx(sum(together) / len(together), abs=1e-9)
    assert found["rms"] == pytest.approx(math.sqrt(sum(value**2 for value in together) / len(together)), abs=1e-9)
    assert found["largest"] == max(together)


def test_what_one_rank_alone_saw_is_told_and_a_mean_of_nothing_is_nan() -> None:
    found = joined([{"a": Mean(1.0, 2.0)}, {"b": Largest(3.0), "c": Mean(0.0, 0.0)}])
    assert (found["a"], found["b"]) == (0.5, 3.0)
    assert math.isnan(found["c"])
