"""The report's section on an extension: what it gained at every length, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lm.train.before_after import AFTER, BEFORE, CONTROL, ROPE_ONLY, BeforeAfter, Cost, Figure, Kind
from lm.train.format import byte_size, short_number
from lm.train.report.charts import Series, line_chart
from lm.train.report.heat_map import heat_map
from lm.train.report.markup import table, text
from lm.train.report.scale import Axis

COLOURS = {AFTER: 0, BEFORE: 1, CONTROL: 2, ROPE_ONLY: 3}
LENGTH = Axis("tokens of context", log=2)
PERPLEXITY = Axis("perplexity, logarithmic", log=10)


def extension_section(found: BeforeAfter | None) -> str:
    """The section, or nothing where nothing was measured."""
    if found is None or not any(model.figures for model in found.models.values()):
        return ""
    last = f"Perplexity of the same last {found.settings['last_k']} tokens behind longer and longer contexts"
    charts = [
        _curves(last, found, "last_tokens"),
        _curves("LongLoRA's window mean: windows of each length, all their tokens", found, "window_mean"),
        *_passkeys(found),
    ]
    return (
        "<section><h2>What the extension gained and what it cost</h2>"
        f'<p class="soft">{text(_verdict(found))}</p><div class="charts">{"".join(filter(None, charts))}</div>'
        f"{_figures(found)}{_costs(found)}</section>"
    )


def _verdict(found: BeforeAfter) -> str:
    context, target = found.settings["context"], found.settings["target_length"]
    parts = [f"From {context:,} to {target:,} tokens."]
    ends = {name: model.of("last_tokens")[-1:] for name, model in found.models.items()}
    longest = max((figure.length for end in ends.values() for figure in end), default=0)
    said = [f"{_perplexity(end[0])} {name}" for name, end in ends.items() if end and end[0].length == longest]
    if said:
        parts.append(f"Perplexity of the last {found.settings['last_k']} tokens at {longest:,}: {', '.join(said)}.")
    return " ".join(parts)


def _curves(title: str, found: BeforeAfter, kind: Kind) -> str:
    series = [
        Series(name, [(figure.length, _exp(figure.value)) for figure in model.of(kind)], "dots", COLOURS[name])
        for name, model in found.models.items()
        if model.of(kind)
    ]
    return line_chart(title, series, LENGTH, PERPLEXITY) if series else ""


def _passkeys(found: BeforeAfter) -> list[str]:
    return [
        _passkey(f"Passkey found: {name}", model.of("passkey"))
        for name, model in found.models.items()
        if model.of("passkey")
    ]


def _passkey(title: str, figures: Sequence[Figure]) -> str:
    lengths = sorted({figure.length for figure in figures})
    depths = sorted({figure.depth or 0.0 for figure in figures})
    shares = {(figure.depth or 0.0, figure.length): figure.value for figure in figures}
    return heat_map(
        title,
        [f"{length:,}" for length in lengths],
        [f"{depth:.0%}" for depth in depths],
        [[shares.get((depth, length)) for length in lengths] for depth in depths],
        "tokens of prompt and answer",
        "depth of the number",
    )


def _figures(found: BeforeAfter) -> str:
    names = list(found.models)
    rows = []
    protocols: dict[Kind, str] = {
        "last_tokens": f"last {found.settings['last_k']} tokens",
        "window_mean": "window mean",
    }
    for kind, said in protocols.items():
        by_length = [{figure.length: figure for figure in model.of(kind)} for model in found.models.values()]
        for length in sorted({length for figures in by_length for length in figures}):
            cells = [_with_error(figures[length]) if length in figures else "" for figures in by_length]
            rows.append((said, f"{length:,}", *cells))
    if not rows:
        return ""
    note = (
        f"Perplexity ± its standard error, over up to {found.settings['windows']} texts (last tokens) or windows, in "
        "blocks where they overlap (window mean); without one where there is a single text or block."
    )
    figures = table(("protocol", "tokens", *names), rows, words=frozenset({"protocol"}))
    return f'<div class="panel">{figures}<p class="soft">{text(note)}</p></div>'


def _costs(found: BeforeAfter) -> str:
    costs = {name: model.cost for name, model in found.models.items() if model.cost is not None}
    if not costs:
        return ""
    columns = ("run", "attention in training", "steps", "trained", "of parameters", "tokens/s, median", "peak memory")
    rows = [_cost_row(name, cost) for name, cost in costs.items()]
    return f'<div class="panel">{table(columns, rows, words=frozenset({"run", "attention in training"}))}</div>'


def _cost_row(name: str, cost: Cost) -> tuple[object, ...]:
    return (
        name,
        cost.attention.replace("_", "-"),
        f"{cost.steps:,}",
        f"{cost.trained_parameters:,}",
        f"{cost.parameters:,}",
        "" if cost.tokens_per_second is None else short_number(cost.tokens_per_second),
        "" if cost.peak_memory is None else byte_size(cost.peak_memory),
    )


def _with_error(figure: Figure) -> str:
    perplexity = _exp(figure.value)
    if figure.stderr is None or not math.isfinite(perplexity):
        return _perplexity(figure)
    return f"{_perplexity(figure)} ± {_short(perplexity * figure.stderr, 2)}"


def _perplexity(figure: Figure) -> str:
    return _short(_exp(figure.value), 4)


def _short(value: float, digits: int) -> str:
    """So many significant digits, without an exponent below a million."""
    return f"{float(f'{value:.{digits}g}'):g}"


def _exp(nats: float) -> float:
    return math.exp(nats) if not nats > 700 else math.inf
