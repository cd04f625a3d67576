"""One HTML page for one evaluation or for several side by side; it needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from eval.compare import contrasts, labels, mean_rows, perplexities, perplexity_table, reasons
from eval.page_charts import context_charts, curves, depth_maps, efficiency_charts, position_charts, score_maps
from eval.results import Results, common_tasks
from eval.statistics import percent
from lm.train.format import short_number
from lm.train.report.markup import definitions, table, text
from lm.train.report.style import STYLE
from lm.train.tensor_file import replace_text

Named = Sequence[tuple[str, Results]]
MANY_TESTS = "Many rows are tested at once, so that small p occur here and there by chance."
WORDS = frozenset({"task", "paired test", "reason", "text", "protocol", "note", "model"})


def write_page(results: Sequence[Results], path: Path) -> None:
    """Writes the page of these results, replacing an older one; the first is what the others are compared with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, render(results))


def render(results: Sequence[Results]) -> str:
    """The whole page."""
    named = list(zip(labels(results), results, strict=True))
    title = " · ".join(name for name, _ in named)
    sections = [
        _section("Scores", [*score_maps(named), *curves(named)]),
        _section("By depth and length", depth_maps(named)),
        _tables(named),
        _comparisons(named),
        _perplexities(named),
        _section("Loss by length and by position", [*context_charts(named), *position_charts(named)]),
        _section("Speed and memory", efficiency_charts(named)),
        *(_about(name, result) for name, result in named),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{text(title)}</h1>{_asked(named)}<div class="cards">{_cards(named)}</div></header>\n'
        + "\n".join(part for part in sections if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _asked(named: Named) -> str:
    tasks = dict.fromkeys(task for _, result in named for task in result.tasks)
    if not tasks:
        return ""
    lengths = sorted({length for _, result in named for length in result.lengths})
    samples = sorted({len(cell.samples) for _, result in named for cell in result.cells})
    return (
        f'<p class="soft">{len(tasks)} tasks at {_span(lengths)} tokens, {_span(samples)} samples of each at each '
        "length. Scores are means in percent.</p>"
    )


def _span(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def _cards(named: Named) -> str:
    cards, tasks = [], common_tasks([result for _, result in named])
    for name, result in named:
        whose = f"{name}: " if len(named) > 1 else ""
        for length, mean in list(result.means(tasks).items())[-1:]:
            cards.append((f"{100 * mean:.1f} %", f"{whose}mean score at {length:,} tokens"))
        cards.append((short_number(result.settings["model"]["parameters"]), f"{whose}parameters"))
    return "".join(f"<div><b>{text(value)}</b><span>{text(what)}</span></div>" for value, what in cards)


def _section(title: str, figures: Iterable[str]) -> str:
    shown = "".join(figures)
    return f'<section><h2>{text(title)}</h2><div class="charts">{shown}</div></section>' if shown else ""


def _tables(named: Named) -> str:
    parts = []
    for name, result in named:
        if result.cells:
            lengths = result.lengths
            cells = [[result.cell(task, length) for length in lengths] for task in result.tasks]
            rows = [
                [task, *("" if cell is None else percent(cell.estimate) for cell in row)]
                for task, row in zip(result.tasks, cells, strict=True)
            ]
            rows += mean_rows(result)
            columns = ["task", *(f"{length:,} tokens" for length in lengths)]
            parts.append(f"<h2>{text(name)}: percent and 95 % interval</h2>{_panel(table(columns, rows, WORDS))}")
    return f"<section>{''.join(parts)}</section>" if parts else ""


def _perplexities(named: Named) -> str:
    whose = [(name, found) for name, result in named for found in perplexities(result)]
    if not whose:
        return ""
    columns, rows = perplexity_table([found for _, found in whose])
    named_rows = [(name, *row) for (name, _), row in zip(whose, rows, strict=True)]
    return f"<section><h2>Perplexity</h2>{_panel(table(('model', *columns), named_rows, WORDS))}</section>"


def _comparisons(named: Named) -> str:
    parts = []
    for name, other in named[1:]:
        first_name, first = named[0]
        rows = [
            (
                found.first.task,
                f"{found.first.length:,}",
                percent(found.first.estimate),
                percent(found.second.estimate),
                *found.words(),
            )
            for found in contrasts(first, other)
        ]
        columns = ["task", "tokens", first_name, name, "difference", "95 %", "p", "paired test"]
        body = '<p class="empty">They were asked nothing in common.</p>'
        if rows:
            body = f'{table(columns, rows, WORDS)}<p class="soft">{MANY_TESTS}</p>'
        parts.append(f"<h2>{text(name)} against {text(first_name)}</h2>{_panel(body)}")
    return f"<section>{''.join(parts)}</section>" if parts else ""


def _about(name: str, result: Results) -> str:
    settings = result.settings
    model = settings["model"]
    facts = [
        ("model", model["path"]),
        ("configuration and weights", model["fingerprint"]),
        ("tokenizer", settings["tokenizer"]),
        ("context", "not stated" if model["context"] is None else f"{model['context']:,} tokens"),
        ("precision", model["dtype"]),
        ("samples", f"{settings['samples']} of each task and length, seed {settings['seed']}"),
        ("hash of all prompts", result.prompts),
    ]
    if settings["haystack"]:
        facts.append(("haystack", f"{settings['haystack']['name']}, {settings['haystack']['digest'][:16]}"))
    facts += [("no speed and memory", reason) for reason in reasons(result.measured("efficiency"))]
    body = definitions([*facts, *result.environment.items()])
    if result.skipped:
        rows = [(one["task"], f"{one['length']:,}", one["reason"]) for one in result.skipped]
        body += f"<p>Not asked:</p>{table(('task', 'tokens', 'reason'), rows, WORDS)}"
    return f"<section><h2>What fixes {text(name)}</h2>{_panel(body)}</section>"


def _panel(body: str) -> str:
    return f'<div class="panel">{body}</div>'
