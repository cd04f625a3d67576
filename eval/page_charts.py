"""The charts of an evaluation's page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

from eval.results import Cell, Record, Results, common_tasks
from lm.train.report.charts import COLOURS, Point, Series, line_chart
from lm.train.report.heat_map import heat_map
from lm.train.report.scale import Axis

Named = Sequence[tuple[str, Results]]
TOKENS = Axis("tokens", log=2)
PERCENT = Axis("percent", from_zero=True, up_to=100)
DEPTH_BINS = 10
FIGURES = {
    "prefill_tokens_per_second": ("Reading", "tokens per second", 1.0),
    "decode_tokens_per_second": ("Writing", "tokens per second", 1.0),
    "cache_bytes": ("Cache", "MiB", 2.0**20),
    "peak_bytes": ("Peak memory, weights included", "MiB", 2.0**20),
}


def score_maps(named: Named) -> Iterator[str]:
    """For each model the mean score of every task at every length."""
    for name, result in named:
        if result.cells:
            rows = [[_mean(result.cell(task, length)) for length in result.lengths] for task in result.tasks]
            columns = [f"{length:,}" for length in result.lengths]
            yield heat_map(f"{name}: score by task and length", columns, result.tasks, rows, "tokens", "task")


def _mean(cell: Cell | None) -> float | None:
    return None if cell is None else cell.estimate.mean


def curves(named: Named) -> Iterator[str]:
    """Score against length, where there is more than one: a mean of tasks; of several models, each such task."""
    if len({length for _, result in named for length in result.lengths}) < 2:
        return
    if tasks := common_tasks([result for _, result in named]):
        means = {name: [(n, 100 * share) for n, share in result.means(tasks).items()] for name, result in named}
        counted = f"{len(tasks)} tasks" if len(tasks) > 1 else tasks[0]
        yield line_chart(f"Mean of {counted} at every length", _series(named, means), TOKENS, PERCENT)
    if len(named) > 1:
        for task in dict.fromkeys(task for _, result in named for task in result.tasks):
            lines = {
                name: [(cell.length, 100 * cell.estimate.mean) for cell in result.cells if cell.task == task]
                for name, result in named
            }
            if any(len(points) > 1 for points in lines.values()):
                yield line_chart(task, _series(named, lines), TOKENS, PERCENT)


def depth_maps(named: Named) -> Iterator[str]:
    """For each task that hides something at a depth, and each model, the mean score at each depth and length."""
    tasks = dict.fromkeys(task for _, result in named for task in result.tasks)
    for task in tasks:
        for name, result in named:
            cells = [cell for cell in result.cells if cell.task == task]
            depths = [record["meta"]["depth"] for cell in cells for record in cell.samples if "depth" in record["meta"]]
            if depths:
                yield _depth_map(f"{name}: {task}", cells, depths)


def _depth_map(title: str, cells: Sequence[Cell], depths: Sequence[float]) -> str:
    distinct = sorted(set(depths))
    even = all(abs(DEPTH_BINS * depth - round(DEPTH_BINS * depth)) < 1e-6 for depth in distinct)
    borders = distinct if even else [place / DEPTH_BINS for place in range(DEPTH_BINS)]
    names = [f"{100 * depth:.0f} %" if even else f"{100 * depth:.0f}-{100 * depth + 10:.0f} %" for depth in borders]
    rows: list[list[float | None]] = [[None] * len(cells) for _ in borders]
    for column, cell in enumerate(cells):
        groups: dict[int, list[float]] = {}
        for record in cell.samples:
            if "depth" in record["meta"]:
                row = max(place for place, border in enumerate(borders) if border <= record["meta"]["depth"] + 1e-9)
                groups.setdefault(row, []).append(record["score"])
        for row, scores in groups.items():
            rows[row][column] = mean(scores)
    columns = [f"{cell.length:,}" for cell in cells]
    return heat_map(title, columns, names, rows, "tokens", "depth of what is asked for")


def context_charts(named: Named) -> Iterator[str]:
    """For each text and protocol the loss against the window, where there is more than one; per byte, so that models
    with other tokenizers compare."""
    charts: dict[tuple[str, str], dict[str, list[Point]]] = {}
    for name, result in named:
        for record in result.measured("perplexity"):
            if "nll" in record:
                lines = charts.setdefault((record["text"], record["by"]), {})
                lines.setdefault(name, []).append((record["length"], record["bits_per_byte"]))
    for (text, by), lines in charts.items():
        if any(len(points) > 1 for points in lines.values()):
            yield line_chart(f"{text}: {by}", _series(named, lines), TOKENS, Axis("bits per byte"))


def position_charts(named: Named) -> Iterator[str]:
    """For each text the loss at every position, of all models that cut it into the same tokens."""
    texts: dict[tuple[str, str], dict[str, Sequence[Point]]] = {}
    for name, result in named:
        for record in result.measured("perplexity"):
            if "by_position" in record:
                lines = texts.setdefault((record["of"], result.settings["tokenizer"]), {})
                lines[name] = [_middle(part) for part in record["by_position"]]
    for (of, _), lines in texts.items():
        whose = f"{', '.join(lines)}: " if len(lines) < len(named) else ""
        yield line_chart(f"{whose}{of}", _series(named, lines), Axis("position", log=2), Axis("nats per token"))


def _middle(part: Record) -> Point:
    """A bin of tokens with `first` to `end` - 1 before them, at the geometric middle."""
    return (part["first"] * (part["end"] - 1)) ** 0.5, part["loss"]


def efficiency_charts(named: Named) -> Iterator[str]:
    """Speed, cache and memory against length."""
    for key, (title, unit, scale) in FIGURES.items():
        lines: dict[str, Sequence[Point]] = {}
        for name, result in named:
            found = [one for one in result.measured("efficiency") if "reason" not in one]
            lines[name] = [(one["length"], None if one[key] is None else one[key] / scale) for one in found]
        if any(value is not None for points in lines.values() for _, value in points):
            yield line_chart(title, _series(named, lines), TOKENS, Axis(unit, from_zero=True))


def _series(named: Named, lines: Mapping[str, Sequence[Point]]) -> list[Series]:
    """Each model in its own colour, the same in every chart."""
    return [
        Series(name, lines[name], "dots", colour=number % COLOURS)
        for number, (name, _) in enumerate(named)
        if name in lines
    ]
