"""The report: one HTML page that shows a run and needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from lm.plan import LayerPlan, Plan
from lm.train.evaluation import Evaluation, asked
from lm.train.format import byte_size, duration, short_number
from lm.train.report.charts import COLOURS, Bar, Point, Series, bar_chart, line_chart
from lm.train.report.data import ReportData
from lm.train.report.extension import extension_section
from lm.train.report.layers import layers_section
from lm.train.report.markup import definitions, table, text
from lm.train.report.scale import STEP, Axis
from lm.train.report.style import STYLE
from lm.train.sample import Sample

SMOOTHING_SHARE = 0.04
FLOPS_NOTE = (
    "FLOPs are those of the matrix products: linear layers, and the pairs of query and key that each mixer scores. A "
    "causal pair counts once, so that full attention has half of its square, and documents that end within a row have "
    "fewer. Backward counts twice the forward. What is recomputed to save memory is counted neither here nor in MFU."
)
PLAN_COLUMNS = ("layer", "mixer", "sees", "heads", "parameters", "FLOPs/token", "cache/token", "cache", "reach")


def render(data: ReportData) -> str:
    """The whole page."""
    parts = [
        _header(data),
        extension_section(data.before_after),
        _held_out(data.evaluation, data.before),
        _training(data),
        layers_section(data),
        _tasks(data),
        _plan(data.plan),
        _sample(data.sample),
        _settings(data),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(data.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def smoothed(points: Sequence[Point], share: float = SMOOTHING_SHARE) -> list[Point]:
    """Means over windows of about `share` of the points, centred on each, so that a falling curve is not trailed.

    Towards both ends the windows shrink to stay centred. Missing values are left out of the means.
    """
    most = round(share * len(points) / 2)
    result: list[Point] = []
    for index, (step, _) in enumerate(points):
        half = min(most, index, len(points) - 1 - index)
        values = [value for _, value in points[index - half : index + half + 1] if value is not None]
        result.append((step, sum(values) / len(values) if values else None))
    return result


def _header(data: ReportData) -> str:
    cards = "".join(f"<div><b>{text(value)}</b><span>{text(name)}</span></div>" for name, value in _cards(data))
    return f'<header><h1>{text(data.title)}</h1>{_verdict(data)}<div class="cards">{cards}</div></header>'


def _verdict(data: ReportData) -> str:
    found = data.evaluation
    if found is None:
        return '<p class="soft">Not evaluated on held-out text yet.</p>'
    sentence = f"Held-out perplexity {found.perplexity:.4g} per token"
    if found.bits_per_byte is not None:
        sentence += f" and {found.bits_per_byte:.3f} bits per byte"
    sentence += f" after {found.step:,} steps, on {found.tokens:,} tokens"
    sentence += "." if found.bytes is None else f" ({byte_size(found.bytes)} of text)."
    return f'<p class="soft">{text(sentence)}</p>'


def _cards(data: ReportData) -> Iterable[tuple[str, str]]:
    if data.evaluation is not None:
        yield "held-out perplexity", f"{data.evaluation.perplexity:.4g}"
        if data.evaluation.bits_per_byte is not None:
            yield "bits per byte", f"{data.evaluation.bits_per_byte:.3f}"
        yield "held-out accuracy", f"{data.evaluation.accuracy:.1%}"
    if (tokens := data.last("tokens")) is not None:
        yield "tokens trained on", short_number(tokens)
    if data.plan is not None:
        yield "parameters", short_number(data.plan.parameters)
    if (speed := _typical(data, "tokens_per_second")) is not None:
        yield "tokens per second", short_number(speed)
    if (share := _typical(data, "mfu")) is not None:
        yield "of peak FLOPs (MFU)", f"{share:.1%}"
    if (memory := data.last("peak_memory")) is not None:
        yield "peak memory", f"{memory / 2**30:.2g} GiB"
    if seconds := sum(value for _, value in data.series("step_seconds") if value is not None):
        yield "time in training steps", duration(seconds)


def _typical(data: ReportData, key: str) -> float | None:
    """The median: the first steps warm up, and a machine may be busy for a while."""
    values = [value for _, value in data.series(key) if value is not None]
    return median(values) if values else None


def _held_out(found: Evaluation | None, before: Mapping[str, Evaluation]) -> str:
    if found is None:
        return ""
    charts = _beginnings(found, before) + _baselines(found) + _positions(found, before)
    return f'<section><h2>Held-out data</h2><div class="charts">{charts}</div></section>' if charts else ""


def _beginnings(found: Evaluation, before: Mapping[str, Evaluation]) -> str:
    if not before:
        return ""
    bars = [Bar(name, evaluation.loss) for name, evaluation in before.items()]
    return bar_chart("Held-out loss, nats per token, beside what the run began with", [*bars, _this(found.loss)])


def _this(value: float) -> Bar:
    return Bar("this model", value, strong=True)


def _baselines(found: Evaluation) -> str:
    if found.bits_per_byte is None or not found.baselines:
        return ""
    bars = [_this(found.bits_per_byte)]
    bars += [Bar(name, value) for name, value in sorted(found.baselines.items(), key=lambda item: item[1])]
    return bar_chart("Bits per byte, beside other ways to predict the same bytes", bars)


def _positions(found: Evaluation, before: Mapping[str, Evaluation]) -> str:
    if not found.by_position:
        return ""
    series = [Series("this model", _by_position(found), "dots", colour=1)]
    series += [
        Series(name, _by_position(evaluation), colour=colour)
        for (name, evaluation), colour in zip(before.items(), (0, 2, 3), strict=False)
    ]
    return line_chart(
        "Loss by position: what reading more of a document gains",
        series,
        Axis("position in the document", log=2),
        Axis("nats per token"),
    )


def _by_position(found: Evaluation) -> list[Point]:
    # The geometric middle of a bin, positions counted from 1, is its middle on the axis.
    return [(((part.first + 1) * part.end) ** 0.5, part.loss) for part in found.by_position]


def _training(data: ReportData) -> str:
    if not data.metrics:
        return ""
    loss = data.series("loss")
    curves = [
        Series("each step", loss, "faint"),
        Series("smoothed", smoothed(loss)),
        Series("held-out", data.series("validation_loss"), "dots", colour=1),
    ]
    if averaged := data.series("average_validation_loss"):
        curves.append(Series("held-out, averaged weights", averaged, "dots", colour=2))
    charts = [
        line_chart("Loss", curves, STEP, Axis("nats per token")),
        line_chart("Learning rate", [_line(data, "learning_rate", 0)], STEP, Axis("", from_zero=True)),
        line_chart("Gradient norm before clipping", [_line(data, "grad_norm", 3)], STEP, Axis("logarithmic", log=10)),
        line_chart("Speed", [_line(data, "tokens_per_second", 2)], STEP, Axis("tokens per second", from_zero=True)),
        *_efficiency(data),
    ]
    accuracy = data.series("validation_accuracy")
    if len(accuracy) > 1:  # of a single evaluation the header has it
        held_out = [Series("", accuracy, "dots", colour=1)]
        charts.insert(1, line_chart("Held-out accuracy", held_out, STEP, Axis("share of targets", from_zero=True)))
    return f'<section><h2>Training</h2><div class="charts">{"".join(charts)}</div></section>'


def _line(data: ReportData, key: str, colour: int) -> Series:
    return Series("", data.series(key), colour=colour)


def _efficiency(data: ReportData) -> list[str]:
    """How well the device is used, and what a step waits for."""
    charts = []
    if share := data.series("mfu"):
        axis = Axis("share of the peak", from_zero=True)
        charts.append(line_chart("Model FLOPs utilisation", [Series("", share, colour=2)], STEP, axis))
    waits: list[Point] = [
        (record["step"], record["data_seconds"] / record["step_seconds"])
        for record in data.metrics
        if record.get("data_seconds") is not None and record.get("step_seconds")
    ]
    if waits:
        axis = Axis("share of the step", from_zero=True)
        charts.append(line_chart("Waiting for data", [Series("", waits, colour=1)], STEP, axis))
    return charts


def _tasks(data: ReportData) -> str:
    """One chart for each task that was asked on the way, one line for each length."""
    lengths: dict[str, list[int]] = {}
    for _, task, length in asked(dict.fromkeys(key for record in data.metrics for key in record)):
        lengths.setdefault(task, []).append(length)
    charts = [
        line_chart(
            task,
            [
                Series(f"{length:,} tokens", data.series(f"eval/{task}@{length}"), "dots", colour=number % COLOURS)
                for number, length in enumerate(sorted(found))
            ],
            STEP,
            Axis("share right", from_zero=True, up_to=1),
        )
        for task, found in lengths.items()
    ]
    title = "Long-context tasks while training"
    return f'<section><h2>{title}</h2><div class="charts">{"".join(charts)}</div></section>' if charts else ""


def _plan(plan: Plan | None) -> str:
    if plan is None:
        return ""
    rows = [_layer_row(index, layer) for index, layer in enumerate(plan.layers)]
    totals = definitions(
        [
            ("parameters", f"{plan.parameters:,} ({plan.embedding_parameters:,} of them embeddings)"),
            ("forward FLOPs per token", short_number(plan.flops_per_token)),
            ("training FLOPs per token", short_number(plan.training_flops_per_token)),
            (f"cache at {plan.sequence_length:,} tokens", f"{byte_size(plan.cache_bytes)} per sequence"),
            *_base_cache(plan),
        ]
    )
    layers = table(PLAN_COLUMNS, rows, words=frozenset({"mixer", "sees"}))
    title = f"The model at {plan.sequence_length:,} tokens"
    note = f'<p class="soft">{text(FLOPS_NOTE)}</p>'
    return f'<section><h2>{text(title)}</h2><div class="panel">{layers}{totals}{note}</div></section>'


def _base_cache(plan: Plan) -> list[tuple[str, str]]:
    return [("the same of its base", byte_size(plan.base_cache_bytes))] if plan.base_cache_bytes else []


def _layer_row(index: int, layer: LayerPlan) -> tuple[object, ...]:
    return (
        index,
        layer.mixer if layer.mixer == layer.kind else f"{layer.mixer} ({layer.kind})",
        layer.extent,
        layer.heads if layer.heads == layer.kv_heads else f"{layer.heads} on {layer.kv_heads}",
        f"{layer.parameters:,}",
        short_number(layer.flops_per_token),
        byte_size(layer.cache_bytes_per_token),
        byte_size(layer.cache_bytes),
        f"{layer.reach:,}",
    )


def _sample(sample: Sample | None) -> str:
    if sample is None:
        return ""
    drawn = sample.settings
    note = f"Temperature {drawn.temperature:g}, top-p {drawn.top_p:g}, seed {drawn.seed}; the prompt is in colour."
    prompt = f'<span class="prompt">{text(sample.prompt)}</span>' if sample.prompt else ""
    # A line break right after <pre> would be swallowed, and the sample may begin with one.
    body = f'<pre class="wrap">\n{prompt}{text(sample.text)}</pre>'
    return f'<section><h2>What it writes</h2><p class="soft">{text(note)}</p>{body}</section>'


def _settings(data: ReportData) -> str:
    parts = []
    if data.environment:
        parts.append(f'<h2>Environment</h2><div class="panel">{definitions(data.environment.items())}</div>')
    if data.run_file:
        parts.append(
            '<h2>Run file</h2><details class="panel"><summary>As resolved, with every default</summary>'
            f"<pre>\n{text(data.run_file)}</pre></details>"
        )
    return f"<section>{''.join(parts)}</section>" if parts else ""
