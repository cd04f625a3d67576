"""The report's maps of layers over steps: every value has its place, whatever a run wrote."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.train.report.data import ReportData
from lm.train.report.layers import MOST_COLUMNS, Grid, grid_of, layers_section, value_map
from lm.train.report.ramp import colour

HOSTILE = '<script>"&'


def records(steps: int, every: int = 1) -> list[dict[str, Any]]:
    return [
        {"step": step, "loss": 1.0} | ({"layers/entropy/00": float(step)} if step % every == 0 else {})
        for step in range(1, steps + 1)
    ]


@given(steps=st.integers(1, 400), every=st.integers(1, 7))
def test_columns_hold_all_records_in_order_and_their_means(steps: int, every: int) -> None:
    grid = grid_of(records(steps, every), ["layers/entropy/00"], ["0"])
    looked = [step for step in range(1, steps + 1) if step % every == 0]
    assert len(grid.steps) <= MOST_COLUMNS
    assert list(grid.steps) == sorted(grid.steps)
    if looked:
        assert grid.steps[-1] == looked[-1]
        begin = 0
        for end, mean in zip(grid.steps, grid.values[0], strict=True):
            part = [step for step in looked if begin < step <= end]
            assert mean == pytest.approx(sum(part) / len(part))
            begin = end


@given(
    values=st.lists(
        st.lists(st.none() | st.floats(-1e80, 1e80) | st.just(math.inf), min_size=3, max_size=3), min_size=1, max_size=4
    ),
    log=st.booleans(),
)
@settings(deadline=None)
def test_any_values_make_a_map_with_finite_places(values: list[list[float | None]], log: bool) -> None:
    figure = value_map("title", Grid([HOSTILE] * len(values), [1, 2, 3], values), log, "note")
    assert not re.search(r'="[^"]*(nan|inf)', figure)
    assert HOSTILE not in figure


def test_neighbours_of_one_colour_are_one_shape() -> None:
    figure = value_map("title", Grid(["a"], [1, 2, 3, 4], [[1.0, 1.0, 2.0, None]]), False, "note")
    assert re.findall(r"fill:(#\w+)", figure) == [colour(0.0), colour(1.0)]


def test_names_that_are_cut_can_be_told_apart() -> None:
    names = [f"{layer} shifted_short, heads {heads}" for layer in (3, 30) for heads in ("8-11", "12-15")]
    figure = value_map("title", Grid(names, [1], [[1.0]] * len(names)), False, "note")
    shown = re.findall(r'text-anchor="end">([^<]*…[^<]*)<', figure)
    assert len(set(shown)) == len(names)
    assert all(len(name) <= 20 for name in shown)


def test_the_ramp_grows_lighter_and_is_closed_at_both_ends() -> None:
    def light(share: float) -> float:
        red, green, blue = (int(colour(share)[at : at + 2], 16) for at in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    shades = [light(step / 50) for step in range(51)]
    assert shades == sorted(shades)
    assert (colour(-3.0), colour(7.0)) == (colour(0.0), colour(1.0))


def test_a_section_names_layers_groups_of_heads_lengths_and_positions() -> None:
    found = {
        "step": 1,
        "layers/logit_max/11/0-3": 4.0,
        "layers/logit_max/11/4-7": 8.0,
        "layers/half_life/02": 5.0,
        "layers/half_life_low/02": 1.0,
        "position_loss/0": 5.0,
        "position_loss/512": 2.0,
        "recall/1024": 0.25,
        "recall/1024/nll": 3.0,
    }
    section = layers_section(ReportData("run", [found]))
    for words in ("11, heads 0-3", "11, heads 4-7", "first token", "512 to 1,023", "1,024 tokens", "Half-life"):
        assert words in section, words
    assert section.count("<svg") == 5
    assert layers_section(ReportData("run", records(3, every=9))) == ""
