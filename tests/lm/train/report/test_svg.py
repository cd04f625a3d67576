import xml.etree.ElementTree as ElementTree

import pytest

from lm.train.report.charts import Bar, Series, bar_chart, line_chart
from lm.train.report.scale import Axis
from lm.train.report.svg import svg_file

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    "figure",
    [
        bar_chart('a > b & "c"', [Bar("<one>", 1.0), Bar("two", 2.0, strong=True)]),
        line_chart("a > b", [Series("x", [(1.0, 2.0), (2.0, 1.0)], "dots")], Axis("<x>"), Axis("y")),
    ],
)
def test_a_file_holds_all_of_the_chart_and_its_colours(figure: str) -> None:
    parsed = ElementTree.fromstring(svg_file(figure))
    inside = ElementTree.fromstring(figure).find("svg")
    assert parsed.tag == f"{SVG}svg"
    assert parsed.attrib == inside.attrib
    style, *drawing = parsed.iter()
    style, *drawing = drawing
    assert "--c0:" in style.text
    assert [(e.tag.removeprefix(SVG), e.attrib, e.text) for e in drawing] == [
        (e.tag, e.attrib, e.text) for e in inside.iter() if e is not inside
    ]


def test_a_figure_without_data_is_no_file() -> None:
    with pytest.raises(ValueError, match="no chart"):
        svg_file(line_chart("t", [], Axis("x"), Axis("y")))
