"""The mix of a run as pictures: shares, lengths of documents, epochs as the run goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lm.data.manifest import Manifest
from lm.data.options import DataOptions
from lm.data.show import Read, epochs_read, source_name, tokens_read
from lm.train.report.charts import COLOURS, Bar, Series, bar_chart, line_chart
from lm.train.report.scale import Axis
from lm.train.report.svg import svg_file

_POINTS = 100


def points(steps: int) -> list[int]:
    """The steps of a run that stand in a picture, the last one last."""
    return sorted({-(-steps * number // _POINTS) for number in range(1, _POINTS + 1)})


def write_pictures(
    options: DataOptions, manifests: Sequence[Manifest], ways: Mapping[int, Sequence[Read]], folder: Path
) -> Iterator[Path]:
    """Writes SVG files into `folder` and gives their paths.

    ways: what is read before each of some steps, in their order; the last one is the whole run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [source_name(options, index) for index in range(len(options.sources))]
    tokens = tokens_read(ways[max(ways)])
    epochs = {step: epochs_read(read) for step, read in ways.items()}
    figures = {
        "mix": bar_chart(
            "Share of the tokens that are read, in percent", _bars(names, [100 * n / sum(tokens) for n in tokens])
        ),
        "epochs": line_chart(
            "Epochs of each source",
            [
                Series(name, [(0, 0), *((step, done[index]) for step, done in epochs.items())], colour=index % COLOURS)
                for index, name in enumerate(names)
            ],
            Axis("step"),
            Axis("epochs"),
        ),
    }
    if manifests:
        figures["lengths"] = line_chart(
            "Documents by length",
            [
                Series(name, _lengths(made), "dots", index % COLOURS)
                for index, (name, made) in enumerate(zip(names, manifests, strict=True))
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
