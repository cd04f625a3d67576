import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.train.report.charts import HEIGHT, MOST_POINTS, WIDTH, Bar, Point, Series, bar_chart, line_chart
from lm.train.report.scale import Axis

NAN = float("nan")
HOSTILE = '<script>alert("&\'")</script>'
POINTS = st.lists(st.tuples(st.floats(), st.none() | st.floats()), max_size=30)


def svg_of(figure: str) -> ElementTree.Element:
    parsed = ElementTree.fromstring(figure)
    svg = parsed.find("svg")
    assert svg is not None
    return svg


def coordinates(figure: str) -> list[float]:
    numbers: list[float] = []
    for element in ElementTree.fromstring(figure).iter():
        for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height", "d"):
            text = element.get(name, "").replace("h0", " ")
            numbers += [float(word) for word in re.findall(r"[^\sML]+", text)]
    return numbers


@given(first=POINTS, second=POINTS, log_x=st.sampled_from([None, 2, 10]), log_y=st.sampled_from([None, 10]))
@settings(deadline=None, max_examples=150)
def test_coordinates_are_finite_and_inside_whatever_the_points(
    first: list[Point], second: list[Point], log_x: None, log_y: None
) -> None:
    series = [Series("a", sorted(first, key=lambda point: point[0])), Series("b", second, "dots")]
    figure = line_chart("title", series, Axis("x", log_x), Axis("y", log_y))
    for number in coordinates(figure):
        assert math.isfinite(number)
        assert -1 <= number <= max(WIDTH, HEIGHT) + 1


@pytest.mark.parametrize("points", [[], [(1.0, NAN)], [(NAN, 1.0)], [(1.0, None), (2.0, float("inf"))]])
def test_a_series_without_one_point_to_draw_says_so(points: list[Point]) -> None:
    figure = line_chart("title", [Series("a", points)], Axis("x"), Axis("y"))
    assert "No data" in figure
    assert "<svg" not in figure


def test_one_point_is_drawn() -> None:
    path = svg_of(line_chart("t", [Series("a", [(3.0, 5.0)])], Axis("x"), Axis("y"))).find(".//path")
    assert path is not None
    assert re.fullmatch(r"M[\d.]+ [\d.]+h0", path.get("d", ""))


def test_a_gap_breaks_the_line_and_higher_values_lie_higher() -> None:
    points = [(1.0, 1.0), (2.0, 3.0), (3.0, NAN), (4.0, 2.0), (5.0, 1.5)]
    path = svg_of(line_chart("t", [Series("a", points)], Axis("x"), Axis("y"))).find(".//path")
    assert path is not None
    lines = [re.findall(r"([\d.]+) ([\d.]+)", line) for line in path.get("d", "").split("M")[1:]]
    assert [len(line) for line in lines] == [2, 2]
    (_, y1), (_, y2), (_, y4), (_, y5) = [(float(x), float(y)) for line in lines for x, y in line]
    assert y2 < y4 < y5 < y1


def test_long_series_are_thinned_to_the_mean_of_neighbours() -> None:
    points = [(float(step), float(step % 2)) for step in range(100_000)]
    figure = line_chart("t", [Series("a", points)], Axis("x"), Axis("y"))
    assert figure.count("L") <= MOST_POINTS
    assert len(figure) < 20_000


def test_dots_tell_their_values() -> None:
    figure = line_chart("t", [Series("held-out", [(100.0, 3.25), (200.0, 3.0)], "dots")], Axis("x"), Axis("y"))
    assert [title.text for title in svg_of(figure).iter("title")] == ["held-out: 3.25 at 100", "held-out: 3 at 200"]


def test_only_series_with_points_are_in_the_legend() -> None:
    series = [Series("seen", [(1.0, 1.0)]), Series("unseen", [])]
    figure = line_chart("t", series, Axis("x"), Axis("y"))
    assert "seen</span>" in figure
    assert "unseen" not in figure


def test_hostile_names_are_text() -> None:
    for figure in (
        line_chart(HOSTILE, [Series(HOSTILE, [(1.0, 2.0)], "dots")] * 2, Axis(HOSTILE), Axis(HOSTILE)),
        bar_chart(HOSTILE, [Bar(HOSTILE, 1.0)]),
    ):
        assert "<script" not in figure
        assert HOSTILE in "".join(ElementTree.fromstring(figure).itertext())


def test_bars_are_as_long_as_their_values() -> None:
    svg = svg_of(bar_chart("t", [Bar("model", 1.5, strong=True), Bar("gzip -9", 3.0), Bar("none", 0.0)]))
    widths = [float(rect.get("width", "")) for rect in svg.iter("rect")]
    assert widths[0] == pytest.approx(widths[1] / 2)
    assert widths[2] == 0
    assert [text.text for text in svg.iter("text") if text.get("class") == "value"] == ["1.500", "3.000", "0.000"]
    assert bar_chart("t", []).count("<rect") == 0


def test_a_spread_reaches_from_the_least_to_the_most() -> None:
    svg = svg_of(bar_chart("t", [Bar("a", 0.5, spread=(0.25, 1.0)), Bar("b", 0.5, spread=(0.5, 0.5)), Bar("c", 0.5)]))
    (spread,) = (path.get("d", "") for path in svg.iter("path"))
    start, end = (float(number) for number in re.match(r"M([\d.]+) [\d.]+H([\d.]+)", spread).groups())
    rect = next(svg.iter("rect"))
    left, width = float(rect.get("x", "")), float(rect.get("width", ""))
    assert start == pytest.approx(left + width / 2, abs=0.1)
    assert end == pytest.approx(left + 2 * width, abs=0.1)
    places = [float(text.get("x", "")) for text in svg.iter("text") if text.get("class") == "value"]
    assert places[0] > end
    assert places[1] == places[2] == pytest.approx(left + width + 8, abs=0.1)
