"""Line and bar charts as inline SVG. Colours are CSS classes of the page, text is escaped, coordinates are finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lm.train.report.markup import text
from lm.train.report.scale import Axis, Scale, tick_labels

Point = tuple[float, float | None]

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 26, 42
MOST_POINTS = 600
COLOURS = 4
BAR_HEIGHT, BAR_GAP = 40, 18


@dataclass(frozen=True)
class Series:
    """Points of rising x; a y that is None or not finite breaks the line.

    mark: a plain line, a faint one for raw values behind their smoothed ones, or a line with a dot at each point.
    colour: which of the page's colours, 0 to 3.
    """

    name: str
    points: Sequence[Point]
    mark: Literal["line", "faint", "dots"] = "line"
    colour: int = 0


@dataclass(frozen=True)
class Bar:
    """One bar; `strong` marks the one the chart is about, `spread` is the range of what `value` is the mean of."""

    name: str
    value: float
    strong: bool = False
    spread: tuple[float, float] | None = None


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis) -> str:
    """A `<figure>`: title, legend (for more than one series) and the chart; says so where there are no points."""
    shown = [(item, _thinned([point for point in item.points if x.shows(point[0])], y)) for item in series]
    legend = _legend([item for item, points in shown if points]) if len(series) > 1 else ""
    caption = f"<figcaption>{text(title)}{legend}</figcaption>"
    xs = [px for _, points in shown for px, py in points if py is not None]
    ys = [py for _, points in shown for _, py in points if py is not None]
    if not ys:
        return f'<figure>{caption}<p class="empty">No data.</p></figure>'
    across = Scale.fit(xs, x, LEFT, WIDTH - RIGHT)
    up = Scale.fit(ys, y, HEIGHT - BOTTOM, TOP).widened(0.04)
    marks = "".join(_marks(item, points, across, up) for item, points in shown)
    return (
        f'<figure>{caption}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">'
        f"{_axes(across, up, x, y)}{marks}</svg></figure>"
    )


def _thinned(points: Sequence[Point], y: Axis) -> list[Point]:
    """At most `MOST_POINTS` points, each the mean of neighbours that have a place; None where none of them has."""
    size = -(-len(points) // MOST_POINTS) or 1
    thinned: list[Point] = []
    for begin in range(0, len(points), size):
        bucket = points[begin : begin + size]
        values = [value for _, value in bucket if value is not None and y.shows(value)]
        thinned.append((bucket[len(bucket) // 2][0], sum(values) / len(values) if values else None))
    return thinned


def _legend(series: Sequence[Series]) -> str:
    keys = (f'<span class="key c{item.colour} {item.mark}">{text(item.name)}</span>' for item in series)
    return f'<span class="legend">{"".join(keys)}</span>'


def _axes(across: Scale, up: Scale, x: Axis, y: Axis) -> str:
    parts = []
    up_ticks, across_ticks = up.ticks(), across.ticks()
    for tick, label in zip(up_ticks, tick_labels(up_ticks), strict=True):
        at = up.place(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text(label)}</text>')
    bottom = HEIGHT - BOTTOM
    for tick, label in zip(across_ticks, tick_labels(across_ticks), strict=True):
        at = across.place(tick)
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{text(label)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{text(x.label)}</text>')
    parts.append(f'<text class="label" x="4" y="13">{text(y.label)}</text>')
    return "".join(parts)


def _marks(series: Series, points: Sequence[Point], across: Scale, up: Scale) -> str:
    path, dots, pen_down = "", "", False
    for px, py in points:
        if py is None:
            pen_down = False
            continue
        at = f"{across.place(px):.1f} {up.place(py):.1f}"
        # A point alone between gaps is a line of no length, which round caps make a dot.
        path += f"L{at}" if pen_down else f"M{at}h0"
        pen_down = True
        if series.mark == "dots":
            cx, cy = at.split()
            hint = f"{series.name}: {py:.5g} at {px:g}"
            dots += f'<circle cx="{cx}" cy="{cy}" r="3.2"><title>{text(hint)}</title></circle>'
    return f'<g class="c{series.colour} {series.mark}"><path d="{path}"/>{dots}</g>' if path else ""


def bar_chart(title: str, bars: Sequence[Bar], digits: int = 3) -> str:
    """A `<figure>` of horizontal bars from 0, the value (at least 0) written after each."""
    caption = f"<figcaption>{text(title)}</figcaption>"
    name_width, value_width = 170, 70
    longest = max((value for bar in bars for value in (bar.value, *(bar.spread or ()))), default=0.0) or 1.0
    unit = (WIDTH - name_width - value_width) / longest
    rows = []
    for number, bar in enumerate(bars):
        top = number * (BAR_HEIGHT + BAR_GAP)
        width = bar.value * unit
        low, high = bar.spread or (bar.value, bar.value)
        middle = top + BAR_HEIGHT / 2 + 4.5
        rows.append(
            f'<g class="{"strong" if bar.strong else "plain"}">'
            f'<text class="name" x="{name_width - 12}" y="{middle}" text-anchor="end">{text(bar.name)}</text>'
            f'<rect x="{name_width}" y="{top}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="3"/>'
            + _spread(name_width + low * unit, name_width + high * unit, top + BAR_HEIGHT / 2)
            + f'<text class="value" x="{name_width + high * unit + 8:.1f}" y="{middle}">'
            f"{bar.value:.{digits}f}</text></g>"
        )
    height = max(len(bars) * (BAR_HEIGHT + BAR_GAP) - BAR_GAP, 1)
    return (
        f'<figure>{caption}<svg class="bars" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{text(title)}">'
        f"{''.join(rows)}</svg></figure>"
    )


def _spread(low: float, high: float, middle: float) -> str:
    """A line with ends, where there is a range to show."""
    if high <= low:
        return ""
    ends = "".join(f"M{at:.1f} {middle - 6:.1f}V{middle + 6:.1f}" for at in (low, high))
    return f'<path class="spread" d="M{low:.1f} {middle:.1f}H{high:.1f}{ends}"/>'
