"""What went on inside the model: every layer over the steps, loss by position, and what was recalled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm.plan import Plan
from lm.train.dashboard import LAYERS, Panel
from lm.train.format import short_number
from lm.train.report.charts import COLOURS, Series, line_chart
from lm.train.report.data import ReportData
from lm.train.report.markup import text
from lm.train.report.ramp import colour
from lm.train.report.scale import STEP, Axis

NOTES = {
    "logit_max": "The largest score of a sampled query before softmax. One that keeps growing announces divergence.",
    "entropy": "How widely a sampled query spreads its attention. A fall to 0 means that it looks at one key alone.",
    "half_life": "Tokens after which the median channel's gate has halved what it holds.",
    "activation_rms": "What a layer hands on. It should grow slowly with depth, and settle with time.",
    "gradient_rms": "Of the loss at a layer's output, per token. It should be alike in all layers.",
}
MOST_COLUMNS = 60
LEFT, WIDTH, BOTTOM, VALUE = 132, 640, 40, 54
LOWEST, HIGHEST, HEIGHT = 15.0, 30.0, 180.0
LETTERS, LAST_LETTERS = 20, 11
"""Of a row's name, and of them, where it is cut, those of its end: `heads 12-15` tells one row from the next."""


@dataclass(frozen=True)
class Grid:
    """Rows of values over columns of steps; None where nothing was found.

    steps: [columns], the last one of each. values: [rows][columns].
    """

    rows: Sequence[str]
    steps: Sequence[int]
    values: Sequence[Sequence[float | None]]


def layers_section(data: ReportData) -> str:
    """The section, or nothing where nothing was looked at."""
    names = list(dict.fromkeys(key for record in data.metrics for key in record))
    maps = [_layer_map(data, panel, panel.chosen(names)) for panel in LAYERS]
    charts = "".join(filter(None, maps))
    note = "One row is a layer, or one of its groups of heads; one column is a stretch of steps."
    inside = (
        f'<section><h2>Inside the layers</h2><p class="soft">{note}</p><div class="charts">{charts}</div></section>'
    )
    return (inside if charts else "") + _context(data, names)


def grid_of(records: Sequence[Mapping[str, Any]], keys: Sequence[str], rows: Sequence[str]) -> Grid:
    """The keys' values over at most `MOST_COLUMNS` columns; of several values in one the mean is told."""
    found = [record for record in records if any(record.get(key) is not None for key in keys)]
    size = -(-len(found) // MOST_COLUMNS) or 1
    columns = [found[begin : begin + size] for begin in range(0, len(found), size)]
    values = [[_mean([record.get(key) for record in column]) for column in columns] for key in keys]
    return Grid(rows, [column[-1]["step"] for column in columns], values)


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _layer_map(data: ReportData, panel: Panel, keys: Sequence[str]) -> str:
    keys = sorted(keys)
    if not keys:
        return ""
    metric = keys[0].split("/")[1]
    grid = grid_of(data.metrics, keys, [_layer_name(key, data.plan) for key in keys])
    return value_map(f"{panel.title}, {panel.label}", grid, panel.log, NOTES[metric])


def _layer_name(key: str, plan: Plan | None) -> str:
    """`layers/entropy/03/0-1` -> `3 ls, heads 0-1`."""
    _, _, layer, *heads = key.split("/")
    index = int(layer)
    mixer = f" {plan.layers[index].mixer}" if plan is not None and index < len(plan.layers) else ""
    return f"{index}{mixer}" + (f", heads {heads[0]}" if heads else "")


def value_map(title: str, grid: Grid, log: bool, note: str) -> str:
    """A `<figure>` of cells, brighter for more, the last value of each row behind it."""
    axis = Axis("", log=10 if log else None)
    shown = [value for row in grid.values for value in row if value is not None and axis.shows(value)]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    legend = f'<span class="legend">{text(_said(low))}<span class="viridis"></span>{text(_said(high))}</span>'
    width, height = (WIDTH - LEFT - VALUE) / len(grid.steps), _row_height(len(grid.rows))
    bottom = height * len(grid.rows)
    parts = []
    for number, (name, row) in enumerate(zip(grid.rows, grid.values, strict=True)):
        top, line = height * number, height * (number + 0.5) + 4
        label = name if len(name) <= LETTERS else f"{name[: LETTERS - 1 - LAST_LETTERS]}…{name[-LAST_LETTERS:]}"
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{line:.1f}" text-anchor="end">{text(label)}</text>')
        parts.append(
            f"<g><title>{text(name)}</title>{''.join(_cells(row, width, top, height - 1, axis, low, high))}</g>"
        )
        last = next((value for value in reversed(row) if value is not None), None)
        said = "" if last is None else _said(last)
        parts.append(f'<text class="last" x="{WIDTH}" y="{line:.1f}" text-anchor="end">{text(said)}</text>')
    return (
        f'<figure><figcaption>{text(title)}{legend}</figcaption><svg class="map" '
        f'viewBox="0 0 {WIDTH} {bottom + BOTTOM:.0f}" role="img" aria-label="{text(title)}">{"".join(parts)}'
        f"{''.join(_step_ticks(grid.steps, width, bottom))}</svg>"
        f'<p class="soft">{text(note)}</p></figure>'
    )


def _row_height(rows: int) -> float:
    return float(int(min(HIGHEST, max(LOWEST, HEIGHT / rows))))  # whole, so that all gaps are drawn alike


def _said(value: float) -> str:
    return short_number(value) if abs(value) >= 1 else f"{value:.2g}"


def _cells(
    row: Sequence[float | None], width: float, top: float, height: float, axis: Axis, low: float, high: float
) -> Iterator[str]:
    """Neighbours of one colour are one rectangle, so that a page of a large model stays small."""
    colours = [
        colour(axis.share(value, low, high)) if value is not None and axis.shows(value) else None for value in row
    ]
    begin = 0
    for end in range(1, len(row) + 1):
        if end == len(row) or colours[end] != colours[begin]:
            if colours[begin] is not None:
                x, wide = LEFT + width * begin, width * (end - begin) + 0.4  # no seams
                shape = f"M{x:.1f} {top:.1f}h{wide:.1f}v{height:.1f}h-{wide:.1f}z"
                yield f'<path d="{shape}" style="fill:{colours[begin]}"/>'
            begin = end


def _step_ticks(steps: Sequence[int], width: float, bottom: float) -> Iterator[str]:
    """The step below the first column, the last, and some between."""
    every = max(1, round(len(steps) / 6))
    chosen = [index for index in range(0, len(steps), every) if index == 0 or index <= len(steps) - 1 - every / 2]
    for index in sorted({*chosen, len(steps) - 1}):
        x = LEFT + width * (index + 0.5)
        yield f'<text class="tick" x="{x:.1f}" y="{bottom + 16:.0f}" text-anchor="middle">{steps[index]:,}</text>'
    yield f'<text class="label" x="{(LEFT + WIDTH - VALUE) / 2}" y="{bottom + 34:.0f}" text-anchor="middle">step</text>'


def _context(data: ReportData, names: Sequence[str]) -> str:
    charts = [_position_map(data, names), *_recall_charts(data, names)]
    body = "".join(filter(None, charts))
    title = "How the model came to use its context"
    return f'<section><h2>{title}</h2><div class="charts">{body}</div></section>' if body else ""


def _position_map(data: ReportData, names: Sequence[str]) -> str:
    starts = sorted(int(name.rpartition("/")[2]) for name in names if re.fullmatch(r"position_loss/\d+", name))
    if not starts:
        return ""
    keys = [f"position_loss/{start}" for start in starts]
    rows = [{0: "first token", 1: "second"}.get(start, f"{start:,} to {2 * start - 1:,}") for start in starts]
    note = "Training loss of targets by their position in a document; it falls downwards where context is used."
    return value_map("Loss by position, nats per token", grid_of(data.metrics, keys, rows), log=True, note=note)


def _recall_charts(data: ReportData, names: Sequence[str]) -> list[str]:
    lengths = sorted(int(name.rpartition("/")[2]) for name in names if re.fullmatch(r"recall/\d+", name))
    if not lengths:
        return []

    def series(suffix: str) -> list[Series]:
        return [
            Series(f"{length:,} tokens", data.series(f"recall/{length}{suffix}"), "dots", colour=number % COLOURS)
            for number, length in enumerate(lengths)
        ]

    said_again = Axis("share right", from_zero=True, up_to=1)
    return [
        line_chart("Recall: tokens of a needle said again", series(""), STEP, said_again),
        line_chart("Recall: loss of these tokens", series("/nll"), STEP, Axis("nats per token", from_zero=True)),
    ]
