"""Curves and maps of a run's figures as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from lm.train.format import short_number
from lm.train.report.charts import Point
from lm.train.report.ramp import colour
from lm.train.report.scale import Axis, Scale, tick_labels
from lm.train.watch.canvas import Canvas

BARS = "▁▂▃▄▅▆▇█"
MARGIN = 8
"""Columns for the labels of the vertical axis."""


@dataclass(frozen=True)
class Curve:
    """Points of rising steps; None and what has no place on the axis is a gap."""

    name: str
    points: Sequence[Point]
    style: str

    @property
    def last(self) -> float | None:
        return next((value for _, value in reversed(self.points) if value is not None), None)


def number(value: float | None) -> str:
    """A figure in at most seven characters."""
    if value is None:
        return "-"
    return short_number(value) if abs(value) >= 1 or value == 0 else f"{value:.2g}"


def heading(title: str, curves: Sequence[Curve], width: int) -> Text:
    """The title, and what each curve is and where it stands, as many as there is room for."""
    line = Text(title, "bold")
    for curve in curves:
        name = f"{curve.name} " if curve.name else ""
        part = Text.assemble("  ", (f"{name}{number(curve.last)}", curve.style))
        if line.cell_len + part.cell_len > width:
            break
        line.append_text(part)
    line.truncate(width, overflow="ellipsis")
    return line


def line_chart(
    title: str, curves: Sequence[Curve], axis: Axis, width: int, height: int, ascii_only: bool = False
) -> list[Text]:
    """`height` lines of `width` columns: heading, curves with the vertical axis at their left, and the steps below."""
    lines = [heading(title, curves, width)]
    shown = [[(x, y) for x, y in curve.points if y is not None and axis.shows(y)] for curve in curves]
    points = [point for part in shown for point in part]
    rows, columns = height - 2, width - MARGIN
    if not points or rows < 1 or columns < 4:
        return [*lines, *(Text("") for _ in range(height - 1))][:height]
    canvas = Canvas(columns, rows, ascii_only)
    across = Scale.fit([x for x, _ in points], Axis(""), 0, canvas.dots_across - 1)
    up = Scale.fit([y for _, y in points], axis, canvas.dots_down - 1, 0)
    for curve, part in zip(curves, shown, strict=True):
        _draw(canvas, part, across, up, curve.style)
    labels = _labels(up, rows)
    for row, drawn in enumerate(canvas.rows()):
        lines.append(Text.assemble((f"{labels.get(row, ''):>{MARGIN - 2}} ", "dim"), ("│", "dim"), drawn))
    first, last = (f"{round(x):,}" for x in (min(x for x, _ in points), max(x for x, _ in points)))
    lines.append(Text(" " * MARGIN + first + last.rjust(max(1, columns - len(first))), "dim"))
    return lines


def _draw(canvas: Canvas, points: Sequence[tuple[float, float]], across: Scale, up: Scale, style: str) -> None:
    """The curve through the mean of each column of dots."""
    columns: dict[int, list[int]] = {}
    for x, y in points:
        columns.setdefault(round(across.place(x)), []).append(round(up.place(y)))
    dots = [(x, round(sum(ys) / len(ys))) for x, ys in columns.items()]
    for start, end in zip(dots, dots[1:] or dots, strict=False):
        canvas.line(start, end, style)


def _labels(up: Scale, rows: int) -> dict[int, str]:
    """Labels of the axis by row: ticks with at least one row between them."""
    ticks = up.ticks()
    found: dict[int, str] = {}
    dots_down = max(up.start, 1)
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        row = round(up.place(tick) / dots_down * (rows - 1))
        if not any(abs(row - other) < 2 for other in found):
            found[row] = label
    return found


def layer_map(
    title: str,
    rows: Sequence[tuple[str, Sequence[float | None]]],
    axis: Axis,
    width: int,
    height: int,
    ascii_only: bool = False,
) -> list[Text]:
    """`height` lines: title, then for each row its name, its history as coloured bars, and where it stands.

    Where there are more rows than lines, evenly spaced ones are shown.
    """
    values = [value for _, row in rows for value in row if value is not None and axis.shows(value)]
    lines = [Text(title, "bold")]
    if values and height > 1:
        low, high = min(values), max(values)
        bounds = f"{number(low)} to {number(high)}"
        lines[0].truncate(max(0, width - len(bounds) - 2), overflow="ellipsis")
        lines[0].append(f"  {bounds}", "dim")
        named = max(len(name) for name, _ in rows)
        for name, row in _chosen(rows, height - 1):
            line = Text(f"{name:>{named}} ", "dim")
            for value in _columns(row, width - named - 10):
                line.append(*_bar(value, axis, low, high, ascii_only))
            last = next((value for value in reversed(row) if value is not None), None)
            lines.append(line.append(f" {number(last):>7}"))
    lines[0].truncate(width, overflow="ellipsis")
    return [*lines, *(Text("") for _ in range(height - len(lines)))][:height]


def _chosen(rows: Sequence[tuple[str, Sequence[float | None]]], most: int) -> list[tuple[str, Sequence[float | None]]]:
    count = min(most, len(rows))
    return [rows[round(index * (len(rows) - 1) / max(1, count - 1))] for index in range(count)]


def _columns(row: Sequence[float | None], width: int) -> list[float | None]:
    """The history in at most `width` means."""
    width = max(1, width)
    count = min(width, len(row))
    parts = [row[index * len(row) // count : (index + 1) * len(row) // count] for index in range(count)]
    means = []
    for part in parts:
        there = [value for value in part if value is not None]
        means.append(sum(there) / len(there) if there else None)
    return means


def _bar(value: float | None, axis: Axis, low: float, high: float, ascii_only: bool) -> tuple[str, str]:
    if value is None or not axis.shows(value):
        return " ", ""
    share = axis.share(value, low, high)
    signs = ".:-=+*#@" if ascii_only else BARS
    return signs[min(int(share * len(signs)), len(signs) - 1)], colour(share)
