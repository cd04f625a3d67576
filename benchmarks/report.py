"""Draws the curves of `braid bench mixers`: milliseconds and peak memory against length, both logarithmic."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lm.errors import UserError
from lm.train.report.charts import Series, line_chart
from lm.train.report.scale import Axis
from lm.train.report.svg import svg_file

CHARTS = {  # chart: the mixers in it, at most as many as the page has colours
    "wide": ("SDPA causal", "global", "shifted-short T/4", "long-short 4 x 64"),
    "narrow": ("SDPA causal", "rat 16", "local 1024", "local 64"),
}
TOKENS = Axis("tokens", log=2)


def figures_of(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The figures that `braid bench mixers --json` wrote; of the same one in several files the last counts."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for file in files:
        try:
            figures = json.loads(file.read_text(encoding="utf-8"))["mixers"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} holds no figures of `braid bench mixers --json`: {error!r}") from None
        for figure in figures:
            found[figure["name"], figure["length"], figure["backward"], figure["peer"]] = figure
    return list(found.values())


def curves(figures: Sequence[dict[str, Any]]) -> dict[str, str]:
    """SVG files by name."""
    drawn = {}
    for chart, names in CHARTS.items():
        for what, key, unit, axis in (
            ("time", "seconds", 1e3, "ms, forward + backward"),
            ("memory", "peak_bytes", 2**-20, "peak MiB, forward + backward"),
        ):
            series = [Series(name, _points(figures, name, key, unit), "dots", i) for i, name in enumerate(names)]
            if any(line.points for line in series):
                figure = line_chart(f"{what}, {chart}", series, TOKENS, Axis(axis, log=10))
                drawn[f"mixers-{what}-{chart}.svg"] = svg_file(_named(figure, series))
    return drawn


def _points(figures: Sequence[dict[str, Any]], name: str, key: str, unit: float) -> list[tuple[float, float | None]]:
    found = {
        figure["length"]: figure[key] * unit
        for figure in figures
        if figure["name"] == name and figure["backward"] and figure[key]
    }
    return sorted(found.items())


def _named(figure: str, series: Sequence[Series]) -> str:
    """The caption with its legend stays behind in a file of a chart alone, so the names go into the drawing."""
    names = "".join(
        f'<text x="70" y="{44 + 17 * i}" style="fill: var(--c{line.colour})">{line.name}</text>'
        for i, line in enumerate(series)
        if line.points
    )
    return figure.replace("</svg>", f"{names}</svg>")


def main(files: Sequence[Path], folder: Path) -> None:
    """Draws the figures of the files into the folder."""
    drawn = curves(figures_of(files))
    if not drawn:
        raise UserError("there are no figures of forward + backward in these files")
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in drawn.items():
        (folder / name).write_text(drawing, encoding="utf-8")
        print(folder / name)
