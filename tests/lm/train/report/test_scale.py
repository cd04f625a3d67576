import itertools
import math
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.train.report.scale import MOST_TICKS, Axis, Scale, tick_labels

LOGS: st.SearchStrategy[Literal[2, 10] | None] = st.sampled_from([None, 2, 10])
VALUES = st.lists(st.floats(), max_size=20)


def scale_of(values: list[float], log: Literal[2, 10] | None, from_zero: bool = False) -> Scale:
    axis = Axis("x", log, from_zero)
    return Scale.fit([value for value in values if axis.shows(value)], axis, 10, 110)


@given(values=VALUES, log=LOGS, from_zero=st.booleans())
@settings(deadline=None)
def test_every_value_that_an_axis_shows_lies_on_it_in_order(
    values: list[float], log: Literal[2, 10] | None, from_zero: bool
) -> None:
    scale = scale_of(values, log, from_zero)
    axis = Axis("x", log)
    shown = sorted(value for value in values if axis.shows(value))
    places = [scale.place(value) for value in shown]
    assert all(10 - 1e-6 <= place <= 110 + 1e-6 for place in places)
    assert places == sorted(places)
    wide = scale.widened(0.1)
    assert all(10 - 1e-6 <= wide.place(value) <= 110 + 1e-6 for value in shown)


@given(values=VALUES, log=LOGS)
@settings(deadline=None)
def test_ticks_rise_inside_the_range_and_are_few(values: list[float], log: Literal[2, 10] | None) -> None:
    scale = scale_of(values, log)
    ticks = scale.ticks()
    assert all(low < high for low, high in itertools.pairwise(ticks))
    assert len(ticks) <= MOST_TICKS
    assert all(10 - 1e-3 <= scale.place(tick) <= 110 + 1e-3 for tick in ticks)
    assert len(tick_labels(ticks)) == len(ticks)
    if log != 2:
        assert len(ticks) >= 2


@given(low=st.floats(0, 1e6), width=st.floats(1e-3, 1e7))
@settings(deadline=None)
def test_labels_say_the_value_of_their_tick(low: float, width: float) -> None:
    ticks = Scale(low, low + width, 0, 1).ticks()
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        factor = {"K": 1e3, "M": 1e6}.get(label[-1], 1.0)
        assert math.isclose(float(label.rstrip("KM")) * factor, tick, rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("low", "high", "log", "labels"),
    [
        (0, 400, None, ["0", "100", "200", "300", "400"]),
        (0, 0.003, None, ["0", "0.0005", "0.0010", "0.0015", "0.0020", "0.0025", "0.0030"]),
        (0, 3e-4, None, ["0", "5e-5", "1e-4", "1.5e-4", "2e-4", "2.5e-4", "3e-4"]),
        (0, 12000, None, ["0", "2K", "4K", "6K", "8K", "10K", "12K"]),
        (1, 2048, 2, ["1", "4", "16", "64", "256", "1024"]),
        (64, 16384, 2, ["64", "128", "256", "512", "1024", "2048", "4096", "8192", "16384"]),
        (4096, 65536, 2, ["4096", "8192", "16384", "32768", "65536"]),
        (0.01, 300, 10, ["0.01", "0.1", "1", "10", "100"]),
        (1, 1e6, 10, ["1", "10", "100", "1000", "10K", "100K", "1M"]),
        (0.3, 1.4, 10, ["0.4", "0.6", "0.8", "1.0", "1.2", "1.4"]),
        (1e-9, 1, 10, ["1e-9", "1e-7", "1e-5", "1e-3", "1e-1"]),
    ],
)
def test_ticks_are_the_values_people_expect(
    low: float, high: float, log: Literal[2, 10] | None, labels: list[str]
) -> None:
    assert tick_labels(Scale(low, high, 0, 1, log).ticks()) == labels


def test_a_logarithmic_axis_gives_equal_room_to_equal_ratios() -> None:
    scale = Scale(1, 1024, 0, 100, 2)
    assert scale.place(32) == pytest.approx(50)


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=5))
@settings(deadline=None)
def test_an_axis_of_shares_is_the_same_for_all(values: list[float]) -> None:
    scale = Scale.fit(values, Axis("share", from_zero=True, up_to=1), 0, 100)
    assert (scale.low, scale.high) == (0, 1)
