"""A grid of shares as inline SVG: what is retrieved at every depth and length, for example."""

from __future__ import annotations

from collections.abc import Sequence

from lm.train.report.charts import WIDTH
from lm.train.report.markup import text

TOP, BOTTOM, GAP = 26, 44, 2
LETTER = 8
WIDEST, TALLEST, LEAST = 110, 34, 15
NARROWEST_WITH_TEXT = 30


def heat_map(
    title: str,
    columns: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[float | None]],
    x_label: str,
    y_label: str,
) -> str:
    """A `<figure>` of cells, darker for more, with the value in percent where there is room for it.

    values: [rows][columns], shares in [0, 1], or None for what was not measured. Raises ValueError for other shapes and
    other values.
    """
    _check(columns, rows, values)
    legend = '<span class="legend"><span class="ramp"></span>0 to 100 %</span>'
    caption = f"<figcaption>{text(title)}{legend}</figcaption>"
    if not columns or not rows:
        return f'<figure>{caption}<p class="empty">No data.</p></figure>'
    left = max(40, LETTER * max(len(name) for name in rows) + 14)
    width = min(WIDEST, (WIDTH - left) / len(columns))
    height = max(LEAST, min(TALLEST, 640 / len(rows)))
    bottom = TOP + height * len(rows)
    parts = [f'<text class="label" x="4" y="13">{text(y_label)}</text>']
    every = -(-max(len(name) + 1 for name in columns) * LETTER // width)
    for index, name in enumerate(columns):
        if index % every == 0:
            middle = left + width * (index + 0.5)
            parts.append(
                f'<text class="tick" x="{middle:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{text(name)}</text>'
            )
    for number, (name, row) in enumerate(zip(rows, values, strict=True)):
        top = TOP + height * number
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{top + height / 2 + 5:.1f}" text-anchor="end">{text(name)}</text>'
        )
        for index, value in enumerate(row):
            parts.append(_cell(left + width * index, top, width, height, value, f"{name}, {columns[index]}"))
    middle = left + width * len(columns) / 2
    parts.append(
        f'<text class="label" x="{middle:.1f}" y="{bottom + 38:.1f}" text-anchor="middle">{text(x_label)}</text>'
    )
    return (
        f'<figure>{caption}<svg class="heat" viewBox="0 0 {WIDTH} {bottom + BOTTOM:.0f}" role="img" '
        f'aria-label="{text(title)}">{"".join(parts)}</svg></figure>'
    )


def _cell(left: float, top: float, width: float, height: float, value: float | None, place: str) -> str:
    said = "not measured" if value is None else f"{value:.1%}"
    kind = "none" if value is None else "high" if value > 0.7 else "low"
    shade = "" if value is None else f' fill-opacity="{0.07 + 0.93 * value:.3f}"'
    written = ""
    if width >= NARROWEST_WITH_TEXT:
        label = "–" if value is None else f"{100 * value:.0f}"  # noqa: RUF001 - a dash that is meant
        middle, line = left + (width - GAP) / 2, top + (height - GAP) / 2 + 5
        written = f'<text x="{middle:.1f}" y="{line:.1f}" text-anchor="middle">{label}</text>'
    return (
        f'<g class="{kind}"><title>{text(f"{place}: {said}")}</title><rect x="{left:.1f}" y="{top:.1f}" '
        f'width="{width - GAP:.1f}" height="{height - GAP:.1f}" rx="2"{shade}/>{written}</g>'
    )


def _check(columns: Sequence[str], rows: Sequence[str], values: Sequence[Sequence[float | None]]) -> None:
    if len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        raise ValueError(f"values must be {len(rows)} rows of {len(columns)}")
    if any(value is not None and not 0 <= value <= 1 for row in values for value in row):
        raise ValueError("a heat map shows shares in [0, 1]")
