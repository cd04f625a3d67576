"""The mix of a run as pictures: shares, lengths of documents, epochs as the run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lm.data.manifest import Manifest
from lm.data.options import DataOptions
from lm.data.prepare import Prepared
from lm.data.show import source_name
from lm.train.report.charts import COLOURS, Bar, Series, bar_chart, line_chart
from lm.train.report.scale import Axis
from lm.train.report.svg import svg_file

_POINTS = 100


def write_pictures(
    prepared: Prepared, options: DataOptions, rows: int, rows_per_step: int, folder: Path
) -> Iterator[Path]:
    """Writes SVG files into `folder` and gives their paths. rows: that the run reads."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [source_name(options, index) for index in range(len(options.sources))]
    counts = prepared.train.order.counts(rows)
    figures = {
        "mix": bar_chart("Share of the run's rows, in percent", _bars(names, [100 * n / rows for n in counts])),
        "epochs": line_chart(
            "Epochs of each source",
            [
                Series(name, _epochs(prepared, rows, index, rows_per_step), colour=index % COLOURS)
                for index, name in enumerate(names)
            ],
            Axis("step"),
            Axis("epochs"),
        ),
    }
    if prepared.manifests:
        figures["lengths"] = line_chart(
            "Documents by length",
            [
                Series(name, _lengths(made), "dots", index % COLOURS)
                for index, (name, made) in enumerate(zip(names, prepared.manifests, strict=True))
            ],
            Axis("tokens, from", log=2),
            Axis("documents"),
        )
    for name, figure in figures.items():
        path = folder / f"{name}.svg"
        path.write_text(svg_file(figure), encoding="utf-8")
        yield path


def _bars(names: list[str], values: list[float]) -> list[Bar]:
    return [Bar(name, value) for name, value in zip(names, values, strict=True)]


def _lengths(made: Manifest) -> list[tuple[float, float | None]]:
    return [(2.0**power, float(count)) for power, count in enumerate(made.lengths)]


def _epochs(prepared: Prepared, rows: int, source: int, rows_per_step: int) -> list[tuple[float, float | None]]:
    order = prepared.train.order
    places = [rows * number // _POINTS for number in range(_POINTS + 1)]
    return [(row / rows_per_step, order.counts(row)[source] / order.rows[source]) for row in places]
