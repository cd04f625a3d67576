import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.train.report.charts import WIDTH
from lm.train.report.heat_map import heat_map

GRIDS = st.integers(1, 40).flatmap(
    lambda columns: st.lists(
        st.lists(st.none() | st.floats(0, 1), min_size=columns, max_size=columns), min_size=1, max_size=40
    )
)


def drawn(values: list[list[float | None]]) -> ElementTree.Element:
    rows, columns = (
        [f"{index}%" for index in range(len(values))],
        [f"{512 << index}" for index in range(len(values[0]))],
    )
    svg = ElementTree.fromstring(heat_map("Needles", columns, rows, values, "length", "depth")).find("svg")
    assert svg is not None
    return svg


@given(GRIDS)
@settings(deadline=None, max_examples=60)
def test_every_value_has_its_cell_inside_the_picture(values: list[list[float | None]]) -> None:
    svg = drawn(values)
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    cells = svg.findall("g")
    flat = [value for row in values for value in row]
    assert len(cells) == len(flat)
    places = set()
    for cell, value in zip(cells, flat, strict=True):
        rect, title = cell.find("rect"), cell.find("title")
        assert rect is not None
        assert title is not None
        x, y, w, h = (float(rect.get(name, "")) for name in ("x", "y", "width", "height"))
        assert 0 <= x < x + w <= width == WIDTH
        assert 0 <= y < y + h <= height
        places.add((x, y))
        said = (title.text or "").rpartition(": ")[2]
        assert said == ("not measured" if value is None else f"{value:.1%}")
    assert len(places) == len(flat)


def test_more_is_darker_and_nothing_is_not_zero() -> None:
    shades = [rect.get("fill-opacity") for rect in drawn([[0.0, 0.25, 1.0, None]]).iter("rect")]
    assert shades[3] is None
    assert 0 < float(shades[0] or 0) < float(shades[1] or 0) < float(shades[2] or 0) == 1


def test_values_are_written_where_there_is_room() -> None:
    def written(columns: int) -> list[str]:
        cells = drawn([[0.5] * columns]).findall("g")
        return [text.text or "" for cell in cells for text in cell.findall("text")]

    assert written(4) == ["50"] * 4
    assert written(40) == []


def test_names_are_escaped() -> None:
    figure = heat_map("<script>", ["<b>"], ["&"], [[0.5]], "<x>", "<y>")
    assert not re.search("<(script|b|x|y)>", figure)
    ElementTree.fromstring(figure)


def test_an_empty_grid_says_so() -> None:
    assert "No data" in heat_map("Needles", [], [], [], "length", "depth")


@pytest.mark.parametrize("values", [[[0.5]], [[0.5, 1.5], [0, 0]], [[0, 0], [0, float("nan")]], [[0, 0], [0]]])
def test_other_shapes_and_values_are_refused(values: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"must be|shares"):
        heat_map("Needles", ["1", "2"], ["a", "b"], values, "", "")
